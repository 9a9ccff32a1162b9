import type { ILayoutRestorer } from '@jupyterlab/application';
import { CommandRegistry } from '@lumino/commands';
import { PromiseDelegate } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';
import { nullTranslator } from '@jupyterlab/translation';

import { SessionModel } from '../model';
import { Views } from '../views';
import { fakeAPI, id, session, startedModel, until } from './parts';

const URL_OF_PAGE = 'http://localhost/p/jupyter/';

afterEach(() => {
  jest.restoreAllMocks();
});

describe('a page of a session', () => {
  function viewsOf(model: SessionModel) {
    const widgets: Widget[] = [];
    const commands = new CommandRegistry();
    const views = new Views({
      app: {
        commands,
        shell: {
          add: (widget: Widget) => {
            widgets.push(widget);
            Widget.attach(widget, document.body);
          },
          activateById: jest.fn()
        }
      },
      model,
      services: {},
      fileBrowserFactory: null,
      terminalOptions: async () => ({}),
      translator: nullTranslator
    } as unknown as Views.IOptions);
    return { views, widgets, commands };
  }

  async function opened() {
    const ready = session(1, 'ready');
    const sessions = jest.fn().mockResolvedValue({ sessions: [ready], revision: 1 });
    const { views, widgets } = viewsOf(await startedModel(fakeAPI({ sessions })));
    views.openPage(ready, 'jupyter');
    const [{ node }] = widgets;
    const frame = node.querySelector('iframe') as HTMLIFrameElement;
    const press = async (item: string) => {
      const button = `[data-jp-item-name="${item}"] jp-button`;
      (await until(() => node.querySelector<HTMLElement>(button))).click();
    };
    return { frame, press };
  }

  /** Let the page in the frame be one of the same origin, or of another. */
  function show(frame: HTMLIFrameElement, location: object | 'foreign') {
    const foreign = () => {
      throw new DOMException('Blocked a frame', 'SecurityError');
    };
    const page = location === 'foreign' ? new Proxy({}, { get: foreign }) : location;
    jest
      .spyOn(frame, 'contentWindow', 'get')
      .mockReturnValue({ location: page } as unknown as Window);
  }

  it('is reloaded, and opened in the browser, where the user has gone in it', async () => {
    const { frame, press } = await opened();
    const reload = jest.fn();
    const open = jest.spyOn(window, 'open').mockReturnValue(null);
    show(frame, { href: `${URL_OF_PAGE}tree/notes.ipynb`, reload });
    await press('reload');
    expect(reload).toHaveBeenCalledTimes(1);
    await press('browser');
    expect(open.mock.calls[0][0]).toBe(`${URL_OF_PAGE}tree/notes.ipynb`);
  });

  it('comes back before its session is known, and does not say that it has ended', async () => {
    const answer = new PromiseDelegate<unknown>();
    const sessions = jest.fn().mockReturnValue(answer.promise);
    const model = new SessionModel({ api: fakeAPI({ sessions }), events: null });
    const { views, widgets, commands } = viewsOf(model);
    views.restore({ restore: jest.fn() } as unknown as ILayoutRestorer);
    const state = { kind: 'page', id: id(1), path: 'p/', label: 'session 1' };
    await commands.execute('clearml-session:restore-view', state);
    const text = () =>
      widgets[0].node.querySelector('.jp-ClearML-pageLabel')?.textContent;
    expect(await until(text)).toBe('Asking ClearML…');
    model.start();
    answer.resolve({ sessions: [session(1, 'reconnecting')], revision: 1 });
    expect(await until(() => text()?.includes('Reconnecting') && text())).toBe(
      'Reconnectingtext of reconnecting'
    );
    model.dispose();
  });

  it('begins anew where a link in it has led to another origin', async () => {
    const { frame, press } = await opened();
    const open = jest.spyOn(window, 'open').mockReturnValue(null);
    show(frame, 'foreign');
    frame.src = 'https://elsewhere.example.org/';
    await press('browser');
    expect(open.mock.calls[0][0]).toBe(URL_OF_PAGE);
    await press('reload');
    expect(frame.src).toBe(URL_OF_PAGE);
  });
});

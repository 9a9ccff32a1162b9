import type { ILayoutRestorer } from '@jupyterlab/application';
import { LayoutRestorer } from '@jupyterlab/application';
import { Notification, WidgetTracker } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import type { FileBrowser } from '@jupyterlab/filebrowser';
import type { Contents } from '@jupyterlab/services';
import { ContentsManager, ServerConnection } from '@jupyterlab/services';
import { StateDB } from '@jupyterlab/statedb';
import type { Terminal } from '@jupyterlab/terminal';
import { CommandRegistry } from '@lumino/commands';
import { PromiseDelegate } from '@lumino/coreutils';
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import { nullTranslator } from '@jupyterlab/translation';

import { SessionModel } from '../model';
import { RemoteServices } from '../remote';
import { SessionError } from '../request';
import { Views } from '../views';
import type { Phase } from '../tokens';
import { Events, fakeAPI, id, session, settle, startedModel, until } from './parts';

const URL_OF_PAGE = 'http://localhost/p/jupyter/';

afterEach(() => {
  jest.restoreAllMocks();
});

function viewsOf(model: SessionModel, changes: object = {}) {
  const widgets: Widget[] = [];
  const activateById = jest.fn();
  const commands = new CommandRegistry();
  const views = new Views({
    app: {
      commands,
      shell: {
        add: (widget: Widget) => {
          widgets.push(widget);
          Widget.attach(widget, document.body);
        },
        activateById,
        widgets: () => widgets
      },
      restored: Promise.resolve()
    },
    model,
    services: {},
    fileBrowserFactory: null,
    terminalOptions: async () => ({}),
    translator: nullTranslator,
    ...changes
  } as unknown as Views.IOptions);
  return { views, widgets, commands, activateById };
}

describe('a page of a session', () => {
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

describe('the log of a session', () => {
  async function restored(api: Parameters<typeof fakeAPI>[0]) {
    const model = new SessionModel({ api: fakeAPI(api), events: null });
    const { views, widgets, commands } = viewsOf(model);
    views.restore({ restore: jest.fn() } as unknown as ILayoutRestorer);
    const state = { kind: 'log', id: id(1), label: 'session 1 (log)' };
    await commands.execute('clearml-session:restore-view', state);
    model.start();
    await model.ready;
    await settle();
    const [log] = widgets;
    const isOpen = !log.isDisposed;
    log.dispose();
    model.dispose();
    return isOpen;
  }

  it.each<Phase>(['ended', 'failed'])(
    'comes back also where that has %s, which the list does not hold',
    async phase => {
      const ended = session(1, phase);
      await expect(
        restored({ session: jest.fn().mockResolvedValue(ended) })
      ).resolves.toBe(true);
    }
  );

  it.each([
    ['unknown_session', false],
    ['not_configured', false],
    ['clearml_unreachable', true]
  ])('where there is none (%s) stays open: %s', async (code, stays) => {
    const gone = new SessionError({ code, message: 'none' }, 503);
    await expect(
      restored({ session: jest.fn().mockRejectedValue(gone) })
    ).resolves.toBe(stays);
  });
});

describe('a terminal of a session', () => {
  /** As the real one: it cannot take the focus before it is drawn. */
  class FakeTerminal extends Widget {
    readonly session = { name: '1' };
    readonly drawn = new PromiseDelegate<void>();
    readonly ready = this.drawn.promise;
    readonly typed = document.createElement('textarea');

    draw(): void {
      this.node.append(this.typed);
      this.drawn.resolve();
    }

    protected override onActivateRequest(): void {
      this.typed.focus();
    }
  }

  it('takes what is typed as soon as it is there', async () => {
    const terminal = new FakeTerminal();
    jest
      .spyOn(RemoteServices.prototype, 'createTerminal')
      .mockResolvedValue(terminal as unknown as Terminal);
    const { views, widgets, activateById } = viewsOf(await startedModel(fakeAPI()));
    activateById.mockImplementation(() =>
      MessageLoop.sendMessage(widgets[0], Widget.Msg.ActivateRequest)
    );
    await views.openTerminal(session(1, 'ready'));
    terminal.draw();
    await settle();
    expect(document.activeElement).toBe(terminal.typed);
  });
});

describe('the files of a session', () => {
  async function restored(phase: Phase) {
    const events = new Events();
    const sessions = jest
      .fn()
      .mockResolvedValue({ sessions: [session(1, phase)], revision: 1 });
    const model = new SessionModel({
      api: fakeAPI({ sessions }),
      events: events.stream
    });
    const { views, widgets, commands, activateById } = viewsOf(model);
    const browse = jest
      .spyOn(RemoteServices.prototype, 'createFileBrowser')
      .mockImplementation(async () => new Widget() as FileBrowser);
    views.restore({ restore: jest.fn() } as unknown as ILayoutRestorer);
    // It does not wait for the session: JupyterLab would wait for it.
    await commands.execute('clearml-session:restore-view', {
      kind: 'files',
      id: id(1)
    });
    model.start();
    await model.ready;
    await settle();
    return { model, events, browse, widgets, activateById };
  }

  it.each<Phase>(['starting', 'connecting', 'reconnecting'])(
    'come back when it is ready, also where it was %s at first',
    async phase => {
      const { model, events, browse, widgets, activateById } = await restored(phase);
      expect(browse).not.toHaveBeenCalled();
      const ready = session(1, 'ready');
      events.changed(2, ready);
      await settle();
      events.changed(3, { ...ready, phase_text: 'still' });
      await settle();
      expect(browse.mock.calls).toEqual([[ready]]);
      expect(widgets).toHaveLength(1);
      expect(activateById).not.toHaveBeenCalled(); // the user works elsewhere by now
      model.dispose();
    }
  );

  it.each<Phase>(['ended', 'services_up', 'failed'])(
    'are given up quietly where it is %s meanwhile',
    async phase => {
      const { model, events, browse } = await restored('connecting');
      events.changed(2, session(1, phase));
      await settle();
      events.changed(3, session(1, 'ready'));
      await settle();
      expect(browse).not.toHaveBeenCalled();
      expect(Notification.manager.count).toBe(0);
      model.dispose();
    }
  );
});

describe('the documents of a session', () => {
  const PATH = 'clearml-00000000:notes/plan.md';
  const URL_OF_FILE = `http://localhost/clearml-session/proxy/${id(1)}/jupyter/api/contents/notes/plan.md`;

  /** What JupyterLab makes of a document: an editor that reads it when it is there. */
  class Editor extends Widget {
    constructor(
      readonly context: { path: string },
      contents: Contents.IManager
    ) {
      super();
      contents.get(context.path, { type: 'file', content: true }).then(
        ({ content }) => (this.node.textContent = String(content)),
        reason => (this.node.textContent = String(reason))
      );
    }
  }

  /** JupyterLab starts with a document of a session open; its own plugins come before ours. */
  async function restarted(phase: Phase | null, isSaved = true) {
    const call = jest
      .spyOn(ServerConnection, 'makeRequest')
      .mockImplementation(async () =>
        Response.json({
          name: 'plan.md',
          path: 'notes/plan.md',
          type: 'file',
          writable: true,
          created: '2026-11-22T10:00:00Z',
          last_modified: '2026-11-22T10:00:00Z',
          mimetype: 'text/markdown',
          content: 'over there',
          format: 'text'
        })
      );
    const events = new Events();
    const found = phase ? [session(1, phase)] : [];
    const sessions = jest.fn().mockResolvedValue({ sessions: found, revision: 1 });
    const api = fakeAPI({ sessions });
    const model = new SessionModel({ api, events: events.stream });
    const contents = new ContentsManager();
    const { views, widgets, commands } = viewsOf(model, { services: { contents } });

    const loaded = new PromiseDelegate<StateDB.DataTransform>();
    const state = new StateDB({ transform: loaded.promise });
    const started = new PromiseDelegate<void>();
    const restorer = new LayoutRestorer({
      connector: state,
      first: started.promise,
      registry: commands
    });
    commands.addCommand('docmanager:open', {
      execute: async ({ path }) => {
        await contents.get(String(path), { content: false });
        const editor = new Editor({ path: String(path) }, contents);
        widgets.push(editor);
        editor.disposed.connect(() => widgets.splice(widgets.indexOf(editor), 1));
      }
    });
    void restorer.restore(new WidgetTracker({ namespace: 'editor' }), {
      command: 'docmanager:open',
      name: () => PATH
    });
    views.restore(restorer, state);
    started.resolve();
    const saved = { [`editor:${PATH}`]: { data: { path: PATH, factory: 'Editor' } } };
    loaded.resolve({ type: 'overwrite', contents: isSaved ? saved : {} });
    await restorer.restored;
    return { model, events, widgets, contents, call };
  }

  it('are at their place before anybody is asked for them, and read when it is ready', async () => {
    const { model, events, widgets, call } = await restarted('connecting');
    expect(widgets).toHaveLength(1);
    model.start();
    await model.ready;
    await settle();
    expect(call).not.toHaveBeenCalled();
    events.changed(2, session(1, 'ready'));
    await settle();
    expect(widgets.map(({ node }) => node.textContent)).toEqual(['over there']);
    expect(call.mock.calls.map(([url]) => url.split('?')[0])).toEqual([URL_OF_FILE]);
    model.dispose();
  });

  it.each<Phase | null>([null, 'ended', 'services_up', 'failed'])(
    'go quietly where it is %s',
    async phase => {
      const { model, widgets, contents, call } = await restarted(phase);
      const [{ node }] = widgets;
      model.start();
      await model.ready;
      await settle();
      expect(widgets).toEqual([]);
      expect(node.textContent).toBe(''); // JupyterLab shows a dialog for what it is told
      await expect(contents.get(PATH, { content: false })).rejects.toThrow(
        'not connected'
      );
      expect(call).not.toHaveBeenCalled();
      model.dispose();
    }
  );

  it.each([true, false])(
    'that the address of the page names are opened once (in the workspace: %s)',
    async isSaved => {
      PageConfig.setOption('treePath', PATH);
      const { model, widgets } = await restarted('ready', isSaved);
      // JupyterLab would show that it finds no file browser for it.
      expect(PageConfig.getOption('treePath')).toBe('');
      model.start();
      await model.ready;
      await settle();
      expect(widgets.map(({ node }) => node.textContent)).toEqual(['over there']);
      model.dispose();
    }
  );

  it('are left to JupyterLab where they are of this machine', async () => {
    PageConfig.setOption('treePath', 'notes/clearml-00000000:plan.md');
    const { model } = await restarted('ready', false);
    expect(PageConfig.getOption('treePath')).toBe('notes/clearml-00000000:plan.md');
    PageConfig.setOption('treePath', '');
    model.dispose();
  });
});

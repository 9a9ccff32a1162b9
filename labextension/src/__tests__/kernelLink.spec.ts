import type { ISessionContext } from '@jupyterlab/apputils';
import type { FileBrowser } from '@jupyterlab/filebrowser';
import type { Contents } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { chosenFolder, shownFolder } from '../folder';
import { KernelLink, linkText, sessionOfKernel } from '../kernelLink';
import { Events, fakeAPI, session, settle, startedModel, trans } from './parts';

const NAME = 'clearml-00000000-python3';

/** A session context whose kernel is whatever a test says. */
class Context {
  session: { kernel: { name: string } } | null = null;
  readonly kernelChanged = new Signal<this, unknown>(this);

  set kernel(name: string | null) {
    this.session = name === null ? null : { kernel: { name } };
    this.kernelChanged.emit(null);
  }
}

async function stage() {
  const first = session(0x1, 'ready');
  const sessions = jest.fn().mockResolvedValue({ sessions: [first], revision: 1 });
  const events = new Events();
  const model = await startedModel(fakeAPI({ sessions }), events);
  const context = new Context();
  const showPanel = jest.fn();
  const link = new KernelLink({
    model,
    context: context as unknown as ISessionContext,
    trans,
    showPanel
  });
  Widget.attach(link, document.body);
  await settle();
  return { model, events, context, link, showPanel };
}

describe('KernelLink', () => {
  it('says that the connection is made anew, until it is', async () => {
    const { events, context, link } = await stage();
    context.kernel = NAME;
    await settle();
    expect(link.node.textContent).toBe('');
    events.changed(2, session(1, 'reconnecting', { phase_text: 'attempt 3' }));
    await settle();
    const button = link.node.querySelector('button');
    expect(button?.textContent).toBe('Reconnecting…');
    expect(button?.title).toContain('attempt 3');
    expect(link.node.querySelector('[role=status]')?.contains(button)).toBe(true);
    events.changed(3, session(1, 'ready'));
    await settle();
    expect(link.node.textContent).toBe('');
  });

  it('says nothing of kernels that run elsewhere', async () => {
    const { events, context, link } = await stage();
    events.changed(2, session(1, 'reconnecting'));
    for (const name of ['python3', 'clearml-ffffffff-python3', null]) {
      context.kernel = name;
      await settle();
      expect(link.node.textContent).toBe('');
    }
  });

  it('shows the panel, and is deaf when it is gone', async () => {
    const { events, context, link, model, showPanel } = await stage();
    context.kernel = NAME;
    events.changed(2, session(1, 'reconnecting'));
    await settle();
    link.node.querySelector('button')?.click();
    expect(showPanel).toHaveBeenCalledTimes(1);
    link.dispose();
    events.changed(3, session(1, 'ready'));
    context.kernel = null;
    expect(model.active[0].phase).toBe('ready');
  });

  it('tells a failed connection, not a session that is over', () => {
    const broken = session(1, 'failed', { status: 'in_progress' });
    expect(linkText(broken, trans)).toBe('Not connected');
    expect(linkText(session(1, 'failed'), trans)).toBe('');
    expect(linkText(session(1, 'ready'), trans)).toBe('');
  });

  it('knows the session by the name of the kernel', async () => {
    const { model } = await stage();
    expect(sessionOfKernel(model, NAME)?.id).toBe(session(1, 'ready').id);
    expect(sessionOfKernel(model, 'python3')).toBeUndefined();
  });
});

describe('the folder', () => {
  const contents = {
    driveName: (path: string) => (path.includes(':') ? path.split(':')[0] : ''),
    localPath: (path: string) => path.split(':').pop()
  } as unknown as Contents.IManager;

  function browser(path: string, selected: Array<{ path: string; type: string }> = []) {
    return {
      model: { path },
      selectedItems: () => selected[Symbol.iterator]()
    } as unknown as FileBrowser;
  }

  it('is the one in sight, on this server only', () => {
    expect(shownFolder(browser('a/b'), contents)).toBe('a/b');
    expect(shownFolder(browser('RTC:a'), contents)).toBe('a');
    expect(shownFolder(browser('clearml-01234567:a'), contents)).toBeNull();
    expect(shownFolder(null, contents)).toBeNull();
  });

  it('is the selected one, if it is one', () => {
    const folder = { path: 'a/b', type: 'directory' };
    const file = { path: 'a/c', type: 'file' };
    expect(chosenFolder(browser('a', [folder]), contents)).toBe('a/b');
    expect(chosenFolder(browser('a', [file]), contents)).toBe('a');
    expect(chosenFolder(browser('a', [folder, folder]), contents)).toBe('a');
    expect(chosenFolder(browser('clearml-1:a', [folder]), contents)).toBeNull();
  });
});

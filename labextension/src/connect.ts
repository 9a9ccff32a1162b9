/** Connects a notebook or a console to a kernel that lives on a session already. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { InputDialog } from '@jupyterlab/apputils';
import type { Contents } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';
import type { Widget } from '@lumino/widgets';

import type { IHasContext } from './kernelLink';
import type { SessionAPI } from './request';
import type { IRemoteKernel, ISession } from './tokens';
import { shortId } from './tokens';

/** What of the application is needed. */
type App = Pick<JupyterFrontEnd, 'commands' | 'shell' | 'serviceManager'>;

/** Ask what is to be connected, adopt the kernel and connect it. */
export async function connectKernel(
  app: App,
  api: SessionAPI,
  session: ISession,
  kernel: IRemoteKernel,
  trans: TranslationBundle
): Promise<void> {
  const open = withoutViews([...app.shell.widgets('main')].filter(hasContext));
  const newNotebook = trans.__('A new notebook');
  const newConsole = trans.__('A new console');
  const labels = labelsOf(open, trans);
  const result = await InputDialog.getItem({
    title: trans.__('Connect to kernel %1', `${kernel.name} ${shortId(kernel.id)}`),
    label: trans.__('Variables of the kernel are kept. Connect to it:'),
    items: [...labels, newNotebook, newConsole],
    okLabel: trans.__('Connect')
  });
  const { value } = result;
  if (!result.button.accept || !value) {
    return;
  }
  const id = await api.adoptKernel(session.id, kernel.id);
  if (value === newNotebook) {
    await openNotebook(app, id);
  } else if (value === newConsole) {
    await openConsole(app, id, trans);
  } else {
    const widget = open[labels.indexOf(value)];
    await widget.sessionContext.changeKernel({ id });
    app.shell.activateById(widget.id);
  }
}

/**
 * Open a new notebook on the kernel. Its session is made first: then the notebook only connects. JupyterLab's own way
 * (`notebook:create-new` with a kernel id) may start the session twice, and ends the kernel with the one too many.
 */
async function openNotebook(app: App, kernelId: string): Promise<void> {
  const file = (await app.commands.execute('docmanager:new-untitled', {
    type: 'notebook'
  })) as Contents.IModel;
  await startSession(app, kernelId, file.path, file.name, 'notebook');
  await app.commands.execute('docmanager:open', {
    path: file.path,
    factory: 'Notebook'
  });
}

/** Open a new console on the kernel, in the same way. */
async function openConsole(
  app: App,
  kernelId: string,
  trans: TranslationBundle
): Promise<void> {
  const path = `console-${UUID.uuid4()}`;
  await startSession(app, kernelId, path, trans.__('Console'), 'console');
  await app.commands.execute('console:open', { path, activate: true });
}

async function startSession(
  app: App,
  kernelId: string,
  path: string,
  name: string,
  type: string
): Promise<void> {
  const { sessions } = app.serviceManager;
  const kernel: { id: string; name?: string } = { id: kernelId };
  const session = await sessions.startNew({ path, name, type, kernel });
  session.dispose(); // the connection, not the session: what is opened makes its own
}

/** Further views of a notebook share its kernel: the first one stands for all of them. */
function withoutViews(widgets: IHasContext[]): IHasContext[] {
  const contexts = widgets.map(widget => widget.sessionContext);
  return widgets.filter(
    (widget, index) => contexts.indexOf(widget.sessionContext) === index
  );
}

/** What they are called in the list: each differently, as it is found again by that. */
function labelsOf(widgets: IHasContext[], trans: TranslationBundle): string[] {
  const titles = widgets.map(widget => widget.title.label);
  return widgets.map(({ title: { label }, sessionContext: { path } }) =>
    titles.indexOf(label) === titles.lastIndexOf(label)
      ? trans.__('%1 (open)', label)
      : trans.__('%1 (open: %2)', label, path)
  );
}

function hasContext(widget: Widget): widget is IHasContext {
  const { sessionContext: context } = widget as unknown as Partial<IHasContext>;
  return typeof context?.changeKernel === 'function';
}

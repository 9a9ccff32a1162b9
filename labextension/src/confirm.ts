/** What the user is asked before a command acts. */
import { Dialog, InputDialog } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { ISession } from './tokens';
import { shortId } from './tokens';

/** Ask which session is meant; the only one is not asked for. */
export async function choose(
  sessions: ISession[],
  trans: TranslationBundle,
  title: string
): Promise<ISession | undefined> {
  if (sessions.length < 2) {
    return sessions[0];
  }
  const names = sessions.map(session => `${session.name} (${shortId(session.id)})`);
  const result = await InputDialog.getItem({
    title,
    label: trans.__('Session'),
    items: names
  });
  return result.button.accept ? sessions[names.indexOf(result.value ?? '')] : undefined;
}

/** Whether pages of the session may run under our origin; asked where it is somebody else's. */
export async function trustsOrigin(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  if (session.mine) {
    return true;
  }
  const owner = session.user?.name || trans.__('another user');
  const result = await ask({
    title: trans.__('Open a session of %1?', owner),
    body: trans.__(
      'Pages of this session run under the address of your own JupyterLab, so what is on that machine can act in your name here: read your files and run code in your kernels. Open it only if you trust %1.',
      owner
    ),
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.warnButton({ label: trans.__('Open Anyway') })
    ],
    defaultButton: 0
  });
  return result.button.accept;
}

/** Ask before a session is shut down. */
export async function confirmShutdown(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  const waiting = session.phase === 'queued' || session.phase === 'created';
  const owner = session.mine
    ? ''
    : trans.__(' It belongs to %1.', session.user?.name ?? '?');
  const result = await ask({
    title: trans.__('Shut down %1?', session.name),
    body:
      (waiting
        ? trans.__('It is taken out of its queue and never starts.')
        : trans.__(
            'Its kernels and programs end, and files that are not stored elsewhere are lost.'
          )) + owner,
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.warnButton({ label: trans.__('Shut Down') })
    ]
  });
  return result.button.accept;
}

/** Ask before an ended session is deleted from ClearML. */
export async function confirmDelete(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  const result = await ask({
    title: trans.__('Delete %1?', session.name),
    body: trans.__(
      'Its Task, log and stored workspace are deleted from ClearML. This cannot be undone.'
    ),
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.warnButton({ label: trans.__('Delete') })
    ]
  });
  return result.button.accept;
}

/** As JupyterLab's `showDialog`, for titles with a name in it that may be long. */
function ask(options: Partial<Dialog.IOptions<void>>): Promise<Dialog.IResult<void>> {
  const dialog = new Dialog(options);
  dialog.addClass('jp-ClearML-smallDialog');
  return dialog.launch();
}

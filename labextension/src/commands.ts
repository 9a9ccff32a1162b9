/** The commands: the only place from which this extension acts. Panel, palette, launcher and menus run them. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import {
  Clipboard,
  Dialog,
  InputDialog,
  Notification,
  showDialog
} from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import {
  addIcon,
  cleaningIcon,
  closeIcon,
  copyIcon,
  deleteIcon,
  folderIcon,
  kernelIcon,
  launchIcon,
  linkIcon,
  listIcon,
  refreshIcon,
  saveIcon,
  stopIcon,
  terminalIcon,
  bugIcon
} from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { Action } from './actions';
import { can, findTaskId } from './actions';
import { CommandIDs } from './commandIds';
import { connectKernel } from './connect';
import {
  confirmCleanUp,
  forwardDialog,
  kernelsDialog,
  portDialog,
  taskDialog
} from './dialogs';
import { editorIcon, sessionIcon } from './icons';
import type { Launcher } from './launchDialog';
import { notifyError } from './notify';
import type { Progress } from './progress';
import { SessionError } from './request';
import type { ISession, ISessionModel } from './tokens';
import { shortId } from './tokens';
import type { Views } from './views';

/** What the commands need. */
export interface ICommandOptions {
  app: Pick<JupyterFrontEnd, 'commands' | 'shell' | 'serviceManager'>;
  model: ISessionModel;
  views: Views;
  launcher: Launcher;
  progress: Progress;
  trans: TranslationBundle;
  /** Shows the side panel. */
  showPanel: () => void;
  /** Whether a shutdown asks first. */
  confirmShutdown: () => boolean;
}

/** A command on one session. */
interface ISessionCommand {
  label: string;
  caption: string;
  icon: CommandRegistry.ICommandOptions['icon'];
  action?: Action;
  run: (session: ISession) => Promise<unknown>;
}

/** Add all commands to the registry. */
export function addCommands(options: ICommandOptions): void {
  addGlobalCommands(options);
  addSessionCommands(options);
}

function addGlobalCommands(options: ICommandOptions): void {
  const { app, model, launcher, progress, trans, showPanel } = options;
  const { commands } = app;
  const configured = () =>
    model.status !== null && model.status.mode !== 'unconfigured' && !model.loading;

  const launch = async (preset: ReadonlyPartialJSONObject = {}) => {
    showPanel();
    const session = await launcher.launch(preset);
    if (session) {
      model.put(session);
      progress.follow(session);
    }
    return session;
  };

  commands.addCommand(CommandIDs.openPanel, {
    label: trans.__('ClearML Sessions Panel'),
    caption: trans.__('Show the list of ClearML sessions'),
    icon: sessionIcon,
    execute: showPanel
  });

  commands.addCommand(CommandIDs.newSession, {
    label: args =>
      args.isLauncher ? trans.__('ClearML session') : trans.__('New ClearML Session…'),
    caption: trans.__('Start a session on a remote ClearML machine'),
    icon: args =>
      args.isPalette ? undefined : args.isLauncher ? sessionIcon : addIcon,
    execute: async args => {
      await model.ready;
      if (!configured()) {
        showPanel(); // it says there what is missing
        return null;
      }
      return launch((args.spec as ReadonlyPartialJSONObject | undefined) ?? {});
    }
  });

  commands.addCommand(CommandIDs.attachById, {
    label: trans.__('Attach to a ClearML Session by Id…'),
    caption: trans.__('Attach to a session that was launched elsewhere'),
    icon: args => (args.isPalette ? undefined : linkIcon),
    isEnabled: configured,
    execute: async args => {
      const id =
        typeof args.id === 'string'
          ? args.id
          : await askForTask(
              trans,
              trans.__('Attach to a session'),
              trans.__('Id of the session, or its address in ClearML'),
              trans.__('Attach')
            );
      if (!id) {
        return null;
      }
      showPanel();
      return tell(async () => {
        const session = await model.api.attach(id);
        model.put(session);
        progress.follow(session);
        return session;
      });
    }
  });

  commands.addCommand(CommandIDs.debugTask, {
    label: trans.__('Debug a ClearML Task…'),
    caption: trans.__(
      'Start a session with the code, the uncommitted changes and the packages of a Task'
    ),
    icon: args => (args.isPalette ? undefined : bugIcon),
    isEnabled: configured,
    execute: async args => {
      const id =
        typeof args.id === 'string' ? args.id : await taskDialog(model.api, trans);
      return id ? launch({ debugging_session: id }) : null;
    }
  });

  commands.addCommand(CommandIDs.refresh, {
    label: trans.__('Refresh ClearML Sessions'),
    caption: trans.__('Ask ClearML again, now'),
    icon: args => (args.isPalette ? undefined : refreshIcon),
    execute: () => model.refresh()
  });

  commands.addCommand(CommandIDs.toggleAllUsers, {
    label: trans.__("Show Everybody's ClearML Sessions"),
    isToggleable: true,
    isToggled: () => model.allUsers,
    isEnabled: configured,
    execute: () => {
      model.allUsers = !model.allUsers;
    }
  });

  commands.addCommand(CommandIDs.cleanUp, {
    label: trans.__('Clean Up Ended ClearML Sessions…'),
    caption: trans.__('Choose ended sessions to delete from ClearML'),
    icon: args => (args.isPalette ? undefined : cleaningIcon),
    isEnabled: configured,
    execute: () => tell(() => cleanUp(model, trans))
  });

  model.changed.connect(() => {
    commands.notifyCommandChanged();
  });
}

function addSessionCommands(options: ICommandOptions): void {
  const { app, model, trans } = options;
  const all = sessionCommands(options);
  for (const [id, command] of Object.entries(all)) {
    const enabled = (session: ISession) =>
      !command.action || can(session, command.action);
    const candidates = () =>
      [...model.active, ...(model.ended ?? [])].filter(session => enabled(session));
    app.commands.addCommand(id, {
      label: args =>
        args.isPalette ? trans.__('ClearML Session: %1', command.label) : command.label,
      caption: command.caption,
      icon: args => (args.isPalette ? undefined : (command.icon as typeof sessionIcon)),
      isEnabled: args => {
        if (typeof args.id !== 'string') {
          return candidates().length > 0;
        }
        const session = model.get(args.id);
        return session !== undefined && enabled(session);
      },
      isVisible: args => {
        const session = typeof args.id === 'string' ? model.get(args.id) : undefined;
        return session === undefined || enabled(session);
      },
      execute: async args => {
        const session =
          typeof args.id === 'string'
            ? model.get(args.id)
            : await choose(candidates(), trans, command.label);
        return session ? tell(() => command.run(session)) : null;
      }
    });
  }
}

function sessionCommands(options: ICommandOptions): { [id: string]: ISessionCommand } {
  const { app, model, views, trans, progress } = options;
  const { api } = model;

  /** Attach first where the session runs but nobody is connected to it. */
  const attached = async (session: ISession): Promise<ISession> => {
    if (session.phase !== 'services_up') {
      return session;
    }
    model.put(await api.attach(session.id));
    return progress.untilReady(session.id);
  };

  const open = (how: (session: ISession) => unknown) => async (session: ISession) => {
    if (await trustsOrigin(session, trans)) {
      await how(await attached(session));
    }
  };

  return {
    [CommandIDs.openJupyter]: {
      label: trans.__('Open JupyterLab'),
      caption: trans.__('Open the JupyterLab of the session in a tab here'),
      icon: launchIcon,
      action: 'jupyter',
      run: open(session => views.openPage(session, 'jupyter'))
    },
    [CommandIDs.openJupyterBrowser]: {
      label: trans.__('Open JupyterLab in a New Browser Tab'),
      caption: trans.__(
        'Open the JupyterLab of the session in a browser tab of its own'
      ),
      icon: launchIcon,
      action: 'jupyter',
      run: open(session => views.openInBrowser(session, 'jupyter'))
    },
    [CommandIDs.openVscode]: {
      label: trans.__('VS Code'),
      caption: trans.__('Open the VS Code of the session in a tab here'),
      icon: editorIcon,
      action: 'vscode',
      run: open(session => views.openPage(session, 'vscode'))
    },
    [CommandIDs.openVscodeBrowser]: {
      label: trans.__('Open VS Code in a New Browser Tab'),
      caption: trans.__('Open the VS Code of the session in a browser tab of its own'),
      icon: editorIcon,
      action: 'vscode',
      run: open(session => views.openInBrowser(session, 'vscode'))
    },
    [CommandIDs.openTerminal]: {
      label: trans.__('Terminal'),
      caption: trans.__('Open a terminal on the remote machine'),
      icon: terminalIcon,
      action: 'terminal',
      run: session => views.openTerminal(session)
    },
    [CommandIDs.openFiles]: {
      label: trans.__('Files'),
      caption: trans.__('Browse the files of the remote machine'),
      icon: folderIcon,
      action: 'files',
      run: session => views.openFiles(session)
    },
    [CommandIDs.openPort]: {
      label: trans.__('Open Port…'),
      caption: trans.__('Open a web application of the session, TensorBoard say'),
      icon: linkIcon,
      action: 'port',
      run: open(async session => {
        const port = await portDialog(trans);
        if (port !== null) {
          views.openPort(session, port);
        }
      })
    },
    [CommandIDs.forward]: {
      label: trans.__('Forward Port or SSH…'),
      caption: trans.__(
        'Open a port of this machine for a desktop IDE or another program'
      ),
      icon: linkIcon,
      action: 'forward',
      run: session => forwardDialog(api, session, trans)
    },
    [CommandIDs.kernels]: {
      label: trans.__('Running Kernels…'),
      caption: trans.__('The kernels that live on the session'),
      icon: kernelIcon,
      action: 'kernels',
      run: async session => {
        const kernel = await kernelsDialog(api, session, trans);
        if (kernel) {
          await connectKernel(app, api, session, kernel, trans);
        }
      }
    },
    [CommandIDs.attach]: {
      label: trans.__('Attach'),
      caption: trans.__(
        'Connect to the session, so that its kernels and pages can be used'
      ),
      icon: linkIcon,
      action: 'attach',
      run: async session => {
        model.put(await api.attach(session.id));
      }
    },
    [CommandIDs.detach]: {
      label: trans.__('Detach'),
      caption: trans.__('Close the connection; the session goes on'),
      icon: closeIcon,
      action: 'detach',
      run: async session => model.put(await api.detach(session.id))
    },
    [CommandIDs.reconnect]: {
      label: trans.__('Reconnect'),
      caption: trans.__('Make the connection anew, now'),
      icon: refreshIcon,
      action: 'reconnect',
      run: async session => model.put(await api.reconnect(session.id))
    },
    [CommandIDs.log]: {
      label: trans.__('Log'),
      caption: trans.__('Show the console of the session'),
      icon: listIcon,
      action: 'log',
      run: async session => views.openLog(session)
    },
    [CommandIDs.storeWorkspace]: {
      label: trans.__('Store Workspace Now'),
      caption: trans.__('Keep a snapshot of the workspace folder for the next session'),
      icon: saveIcon,
      action: 'store',
      run: session =>
        Promise.resolve(
          Notification.promise(
            api.storeWorkspace(session.id).then(() => null),
            {
              pending: {
                message: trans.__('Storing the workspace of %1', session.name)
              },
              success: {
                message: () => trans.__('Workspace of %1 stored', session.name)
              },
              error: { message: reason => SessionError.from(reason).message }
            }
          )
        )
    },
    [CommandIDs.shutdown]: {
      label: trans.__('Shut Down'),
      caption: trans.__('End the session and free its machine'),
      icon: stopIcon,
      action: 'shutdown',
      run: async session => {
        if (!options.confirmShutdown() || (await confirmShutdown(session, trans))) {
          model.put(await api.shutdown(session.id));
        }
      }
    },
    [CommandIDs.deleteSession]: {
      label: trans.__('Delete'),
      caption: trans.__('Delete the Task of this ended session from ClearML'),
      icon: deleteIcon,
      action: 'delete',
      run: async session => {
        if (await confirmDelete(session, trans)) {
          await api.purge(session.id);
          model.remove(session.id);
        }
      }
    },
    [CommandIDs.dismiss]: {
      label: trans.__('Dismiss'),
      caption: trans.__('Move this session to the ended ones'),
      icon: closeIcon,
      action: 'dismiss',
      run: async session => model.dismiss(session.id)
    },
    [CommandIDs.copyId]: {
      label: trans.__('Copy Id'),
      caption: trans.__('Copy the id of the session'),
      icon: copyIcon,
      run: async session => Clipboard.copyToSystem(session.id)
    },
    [CommandIDs.openWeb]: {
      label: trans.__('Open in ClearML'),
      caption: trans.__("Open the page of the session's Task in ClearML"),
      icon: launchIcon,
      run: async session => {
        if (session.web_url) {
          window.open(session.web_url, '_blank', 'noopener');
        }
      }
    }
  };
}

/** Run, and tell a failure instead of throwing it at whoever pressed a button. */
async function tell<T>(run: () => Promise<T>): Promise<T | null> {
  try {
    return await run();
  } catch (reason) {
    notifyError(reason);
    return null;
  }
}

async function askForTask(
  trans: TranslationBundle,
  title: string,
  label: string,
  okLabel: string
): Promise<string | null> {
  const result = await InputDialog.getText({
    title,
    label,
    okLabel,
    placeholder: trans.__('32 digits and letters a to f'),
    required: true
  });
  if (!result.button.accept || !result.value) {
    return null;
  }
  const id = findTaskId(result.value);
  if (id === null) {
    notifyError(
      new SessionError(
        {
          code: 'invalid_input',
          message: trans.__('This is not the id of a Task'),
          hint: trans.__(
            'An id has 32 characters, 0 to 9 and a to f. In ClearML, copy it from the top of the Task.'
          )
        },
        400
      )
    );
  }
  return id;
}

async function choose(
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

async function trustsOrigin(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  if (session.mine) {
    return true;
  }
  const owner = session.user?.name || trans.__('another user');
  const result = await showDialog({
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

async function confirmShutdown(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  const waiting = session.phase === 'queued' || session.phase === 'created';
  const owner = session.mine
    ? ''
    : trans.__(' It belongs to %1.', session.user?.name ?? '?');
  const result = await showDialog({
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

async function confirmDelete(
  session: ISession,
  trans: TranslationBundle
): Promise<boolean> {
  const result = await showDialog({
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

/** List the user's own ended sessions and delete the chosen ones, one by one and cancellable. */
async function cleanUp(model: ISessionModel, trans: TranslationBundle): Promise<void> {
  const { sessions } = await model.api.sessions('ended', false);
  const ended = sessions.filter(session => session.mine && can(session, 'delete'));
  const chosen = await confirmCleanUp(ended, trans);
  if (chosen.length === 0) {
    return;
  }
  let cancelled = false;
  const id = Notification.emit(trans.__('Deleting ended sessions'), 'in-progress', {
    autoClose: false,
    progress: 0,
    actions: [{ label: trans.__('Cancel'), callback: () => (cancelled = true) }]
  });
  let done = 0;
  try {
    for (const session of chosen) {
      if (cancelled) {
        break;
      }
      await model.api.purge(session.id);
      model.remove(session.id);
      done += 1;
      Notification.update({ id, progress: done / chosen.length });
    }
  } finally {
    Notification.dismiss(id);
  }
  Notification.success(trans._n('%1 session deleted', '%1 sessions deleted', done), {
    autoClose: 4000
  });
}

/** The commands on one session. */
import { Clipboard, Notification } from '@jupyterlab/apputils';
import {
  addIcon,
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
  terminalIcon
} from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';

import type { Action } from './actions';
import { can } from './actions';
import { CommandIDs } from './commandIds';
import type { ICommandOptions } from './commands';
import { choose, confirmDelete, confirmShutdown, trustsOrigin } from './confirm';
import { connectKernel } from './connect';
import { editorIcon, sessionIcon } from './icons';
import { kernelsDialog } from './kernelsDialog';
import { tell } from './notify';
import { forwardsDialog, portDialog } from './portDialogs';
import { SessionError } from './request';
import { sshDialog } from './sshDialog';
import type { ISession, LaunchSpec } from './tokens';
import type { PageKind } from './views';

/** A command on one session. */
interface ISessionCommand {
  label: string;
  caption: string;
  icon: CommandRegistry.ICommandOptions['icon'];
  action?: Action;
  /** What else it takes, where the state of the session alone does not tell. */
  applies?: (session: ISession) => boolean;
  /** Takes long, and must not run twice at once for one session. */
  alone?: boolean;
  run: (session: ISession) => Promise<unknown>;
}

/** Add the commands that take a session's id; without one the user is asked which session is meant. */
export function addSessionCommands(options: ICommandOptions): void {
  const { app, model, trans } = options;
  const all = sessionCommands(options);
  for (const [id, command] of Object.entries(all)) {
    const running = new Set<string>();
    const makesSense = (session: ISession) =>
      (!command.action || can(session, command.action)) &&
      (!command.applies || command.applies(session));
    const enabled = (session: ISession) =>
      makesSense(session) && !running.has(session.id);
    const run = async (session: ISession) => {
      if (!command.alone) {
        return command.run(session);
      }
      if (running.has(session.id)) {
        return null; // whoever runs a command by its id need not ask whether it is enabled
      }
      running.add(session.id);
      app.commands.notifyCommandChanged(id);
      try {
        return await command.run(session);
      } finally {
        running.delete(session.id);
        app.commands.notifyCommandChanged(id);
      }
    };
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
        return session === undefined || makesSense(session);
      },
      execute: async args => {
        const session =
          typeof args.id === 'string'
            ? model.get(args.id)
            : await choose(candidates(), trans, command.label);
        return session ? tell(() => run(session)) : null;
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

  /** A browser blocks new tabs that come long after the click: where it had to be waited for, they take another. */
  const openInBrowser = (kind: PageKind) => (session: ISession) =>
    open(ready => {
      const show = () => views.openInBrowser(ready, kind);
      if (ready === session) {
        show();
      } else {
        const onClick = () => void tell(async () => show());
        progress.tellReady(ready, trans.__('Open'), onClick);
      }
    })(session);

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
      run: openInBrowser('jupyter')
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
      run: openInBrowser('vscode')
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
        const port = await portDialog(api, session, trans);
        if (port !== null) {
          views.openPort(session, port);
        }
      })
    },
    [CommandIDs.ssh]: {
      label: trans.__('SSH Command…'),
      caption: trans.__(
        'Show how to get into the session with ssh, or from a desktop IDE'
      ),
      icon: terminalIcon,
      action: 'ssh',
      run: session => sshDialog(api, session, trans)
    },
    [CommandIDs.forwards]: {
      label: trans.__('Forwarded Ports…'),
      caption: trans.__(
        'Show, open and close ports of this machine that lead to the session'
      ),
      icon: linkIcon,
      action: 'forwards',
      run: session => forwardsDialog(api, session, trans)
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
      alone: true,
      run: async session => {
        const stored = api.storeWorkspace(session.id).then(() => null);
        Notification.promise(stored, {
          pending: {
            message: trans.__('Storing the workspace of %1', session.name)
          },
          success: {
            message: () => trans.__('Workspace of %1 stored', session.name)
          },
          error: { message: reason => SessionError.from(reason).text }
        });
        await stored.catch(() => null); // the notification tells it
      }
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
    [CommandIDs.again]: {
      label: trans.__('Launch Again…'),
      caption: trans.__('Start a new session with the options of this one'),
      icon: addIcon,
      action: 'again',
      run: async session => {
        const again = { name: session.name, spec: await api.spec(session.id) };
        await app.commands.execute(CommandIDs.newSession, { again });
      }
    },
    [CommandIDs.continueSession]: {
      label: trans.__('Continue…'),
      caption: trans.__(
        'Start a new session with the options and the stored workspace of this one'
      ),
      icon: saveIcon,
      action: 'continue',
      run: async session => {
        const spec = continued(await api.spec(session.id), session.id);
        const again = { name: session.name, spec };
        await app.commands.execute(CommandIDs.newSession, { again });
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
      applies: ({ id }) => model.active.some(session => session.id === id),
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
      action: 'web',
      run: async session => {
        window.open(session.web_url ?? '', '_blank', 'noopener');
      }
    }
  };
}

/**
 * Return the options that continue a session. One that was made from another Task is continued as a copy of itself:
 * started from that Task once more, it would have what that one had, and no workspace.
 */
function continued(spec: LaunchSpec, id: string): LaunchSpec {
  return spec.debugging_session || spec.base_task_id
    ? { ...spec, debugging_session: '', base_task_id: id }
    : { ...spec, continue_session: id };
}

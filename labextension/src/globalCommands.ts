/** The commands that make sense without a session. */
import { Notification } from '@jupyterlab/apputils';
import {
  addIcon,
  bugIcon,
  cleaningIcon,
  linkIcon,
  refreshIcon,
  saveIcon
} from '@jupyterlab/ui-components';

import { attachDialog } from './attachDialog';
import { cleanUp } from './cleanUp';
import { CommandIDs } from './commandIds';
import type { ICommandOptions } from './commands';
import { sessionIcon } from './icons';
import type { ILaunchRequest } from './launchDraft';
import { tell } from './notify';
import { serverDialog } from './serverDialog';
import { importedText } from './text';
import { taskDialog } from './taskDialog';

/** Add the commands that make sense without a session. */
export function addGlobalCommands(options: ICommandOptions): void {
  const { app, model, launcher, progress, trans, showPanel } = options;
  const { commands } = app;
  const configured = () =>
    model.status !== null && model.status.mode !== 'unconfigured' && !model.loading;

  const launch = async (request: ILaunchRequest) => {
    await model.ready;
    showPanel();
    if (!configured()) {
      return null; // the panel says what is missing
    }
    const session = await launcher.launch(request);
    if (session) {
      model.put(session);
      progress.follow(session);
    }
    return session;
  };

  commands.addCommand(CommandIDs.openPanel, {
    label: trans.__('ClearML Sessions Panel'),
    caption: trans.__('Show the list of ClearML sessions'),
    icon: args => (args.isPalette ? undefined : sessionIcon),
    execute: showPanel
  });

  commands.addCommand(CommandIDs.newSession, {
    label: args =>
      args.isLauncher ? trans.__('ClearML session') : trans.__('New ClearML Session…'),
    caption: trans.__('Start a session on a remote ClearML machine'),
    icon: args =>
      args.isPalette ? undefined : args.isLauncher ? sessionIcon : addIcon,
    execute: args => {
      const { spec, again } = args as ILaunchRequest;
      return launch({ spec, again, folder: options.shownFolder() });
    }
  });

  commands.addCommand(CommandIDs.newWithRepository, {
    label: args =>
      args.isPalette
        ? trans.__('New ClearML Session with the Repository of This Folder…')
        : trans.__('New ClearML Session with This Repository…'),
    caption: trans.__(
      'Start a session with the git repository of the folder, uncommitted changes included'
    ),
    icon: args => (args.isPalette ? undefined : sessionIcon),
    isVisible: () => options.chosenFolder() !== null,
    execute: () => launch({ folder: options.chosenFolder(), withRepository: true })
  });

  commands.addCommand(CommandIDs.attachById, {
    label: trans.__('Attach to a ClearML Session by Id…'),
    caption: trans.__('Attach to a session that was launched elsewhere'),
    icon: args => (args.isPalette ? undefined : linkIcon),
    isEnabled: configured,
    execute: async args => {
      const { id } = args;
      const session =
        typeof id === 'string'
          ? await tell(() => model.api.attach(id))
          : await attachDialog(typed => model.api.attach(typed), trans);
      if (session) {
        model.put(session);
        progress.follow(session);
        showPanel();
      }
      return session;
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
      return id ? launch({ spec: { debugging_session: id } }) : null;
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

  commands.addCommand(CommandIDs.importPresets, {
    label: trans.__('Import Presets from clearml-session'),
    caption: trans.__(
      'Make a preset of the options that clearml-session remembers in ~/.clearml_session.json'
    ),
    icon: args => (args.isPalette ? undefined : saveIcon),
    isEnabled: configured,
    execute: () =>
      tell(async () => {
        const { refused } = await model.api.importPresets();
        Notification.success(importedText(refused, trans), { autoClose: 8_000 });
      })
  });

  const isLocal = () => model.status?.mode === 'local';
  commands.addCommand(CommandIDs.connectServer, {
    label: trans.__('Connect to a ClearML Server…'),
    caption: trans.__('Leave ClearML on this machine for a ClearML server'),
    icon: args => (args.isPalette ? undefined : sessionIcon),
    isEnabled: isLocal,
    isVisible: isLocal,
    execute: () => serverDialog(model, trans)
  });

  // Each by its id: without one, every button in every toolbar of JupyterLab is drawn again.
  model.changed.connect(() => {
    Object.values(CommandIDs).forEach(id => commands.notifyCommandChanged(id));
  });
}

/** Names of the commands, apart from the commands themselves so that every component may know them. */

/** Ids of all commands. Those on one session take its id as the argument `id`. */
export namespace CommandIDs {
  export const openPanel = 'clearml-session:open-panel';
  export const newSession = 'clearml-session:new';
  export const newWithRepository = 'clearml-session:new-with-repository';
  export const importPresets = 'clearml-session:import-presets';
  export const attachById = 'clearml-session:attach-by-id';
  export const debugTask = 'clearml-session:debug-task';
  export const connectServer = 'clearml-session:connect-server';
  export const refresh = 'clearml-session:refresh';
  export const cleanUp = 'clearml-session:clean-up';
  export const toggleAllUsers = 'clearml-session:toggle-all-users';
  export const openJupyter = 'clearml-session:open-jupyter';
  export const openJupyterBrowser = 'clearml-session:open-jupyter-in-browser';
  export const openVscode = 'clearml-session:open-vscode';
  export const openVscodeBrowser = 'clearml-session:open-vscode-in-browser';
  export const openTerminal = 'clearml-session:open-terminal';
  export const openFiles = 'clearml-session:open-files';
  export const openPort = 'clearml-session:open-port';
  export const ssh = 'clearml-session:ssh-command';
  export const forwards = 'clearml-session:forwarded-ports';
  export const kernels = 'clearml-session:running-kernels';
  export const attach = 'clearml-session:attach';
  export const detach = 'clearml-session:detach';
  export const reconnect = 'clearml-session:reconnect';
  export const log = 'clearml-session:show-log';
  export const storeWorkspace = 'clearml-session:store-workspace';
  export const shutdown = 'clearml-session:shut-down';
  export const again = 'clearml-session:launch-again';
  export const continueSession = 'clearml-session:continue-session';
  export const deleteSession = 'clearml-session:delete';
  export const dismiss = 'clearml-session:dismiss';
  export const copyId = 'clearml-session:copy-id';
  export const openWeb = 'clearml-session:open-clearml';
}

/** Commands that make sense without a session, in the order of the palette. */
export const GLOBAL_COMMANDS = [
  CommandIDs.newSession,
  CommandIDs.newWithRepository,
  CommandIDs.attachById,
  CommandIDs.debugTask,
  CommandIDs.openPanel,
  CommandIDs.refresh,
  CommandIDs.toggleAllUsers,
  CommandIDs.importPresets,
  CommandIDs.cleanUp,
  CommandIDs.connectServer
] as const;

/** Commands on one session that are also offered in the palette, where the user is asked for which. */
export const SESSION_COMMANDS = [
  CommandIDs.openJupyter,
  CommandIDs.openJupyterBrowser,
  CommandIDs.openVscode,
  CommandIDs.openVscodeBrowser,
  CommandIDs.openTerminal,
  CommandIDs.openFiles,
  CommandIDs.openPort,
  CommandIDs.ssh,
  CommandIDs.forwards,
  CommandIDs.kernels,
  CommandIDs.attach,
  CommandIDs.detach,
  CommandIDs.reconnect,
  CommandIDs.log,
  CommandIDs.storeWorkspace,
  CommandIDs.shutdown,
  CommandIDs.again,
  CommandIDs.continueSession,
  CommandIDs.deleteSession,
  CommandIDs.dismiss,
  CommandIDs.copyId,
  CommandIDs.openWeb
] as const;

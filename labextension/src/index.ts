/** The plugins: they put the parts together and hold nothing. */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { IFileBrowserFactory } from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import type { ITerminal } from '@jupyterlab/terminal';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { addCommands } from './commands';
import { CommandIDs, GLOBAL_COMMANDS, SESSION_COMMANDS } from './commandIds';
import { Launcher } from './launchDialog';
import { SessionModel } from './model';
import { PANEL_ID, PanelWidget } from './panel';
import { Progress } from './progress';
import { SessionAPI } from './request';
import { StatusItem } from './status';
import type { ISessionModel } from './tokens';
import {
  EXTENSION_ID,
  IClearMLSessions,
  PLUGIN_ID,
  TRANSLATION_DOMAIN
} from './tokens';
import { Views } from './views';

const TERMINAL_SETTINGS = '@jupyterlab/terminal-extension:plugin';

const model: JupyterFrontEndPlugin<ISessionModel> = {
  id: `${EXTENSION_ID}:model`,
  description: 'Knows the ClearML sessions of this Jupyter server.',
  autoStart: true,
  provides: IClearMLSessions,
  activate: (app: JupyterFrontEnd): ISessionModel => {
    const { serverSettings, events, kernelspecs } = app.serviceManager;
    const sessions = new SessionModel({
      api: new SessionAPI(serverSettings),
      events: events.stream
    });
    // The kernels of a session come and go with it: the launcher and the pickers should know at once.
    let names = '';
    sessions.changed.connect(() => {
      const now = sessions.active.flatMap(session => session.kernelspecs).join();
      if (now !== names) {
        names = now;
        void kernelspecs.refreshSpecs().catch(() => {
          names = ''; // asked again with the next change
        });
      }
    });
    void app.started.then(() => sessions.start());
    return sessions;
  }
};

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN_ID,
  description: 'The ClearML panel, its commands and what they open.',
  autoStart: true,
  requires: [IClearMLSessions],
  optional: [
    ITranslator,
    ISettingRegistry,
    ILayoutRestorer,
    ICommandPalette,
    ILauncher,
    IFileBrowserFactory
  ],
  activate: (
    app: JupyterFrontEnd,
    sessions: ISessionModel,
    translatorOrNull: ITranslator | null,
    settingRegistry: ISettingRegistry | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    fileBrowserFactory: IFileBrowserFactory | null
  ): void => {
    const translator = translatorOrNull ?? nullTranslator;
    const trans = translator.load(TRANSLATION_DOMAIN);
    const { commands, shell } = app;

    let settings: ISettingRegistry.ISettings | null = null;
    settingRegistry
      ?.load(PLUGIN_ID)
      .then(loaded => {
        settings = loaded;
        sessions.allUsers = Boolean(loaded.get('allUsers').composite);
      })
      .catch((reason: unknown) => {
        console.error(`Failed to load the settings of ${PLUGIN_ID}`, reason);
      });

    const panel = new PanelWidget({ model: sessions, commands, trans });
    const views = new Views({
      app,
      model: sessions,
      services: app.serviceManager,
      fileBrowserFactory,
      terminalOptions: () => terminalOptions(settingRegistry),
      translator
    });
    addCommands({
      app,
      model: sessions,
      views,
      launcher: new Launcher(sessions, translator),
      progress: new Progress(sessions, commands, trans),
      trans,
      showPanel: () => shell.activateById(PANEL_ID),
      confirmShutdown: () => settings?.get('confirmShutdown').composite !== false
    });

    shell.add(panel, 'left', { rank: 600, type: 'ClearML' });
    restorer?.add(panel, PANEL_ID);
    if (restorer) {
      views.restore(restorer);
    }
    const category = trans.__('ClearML');
    for (const command of [...GLOBAL_COMMANDS, ...SESSION_COMMANDS]) {
      palette?.addItem({ command, category, args: { isPalette: true } });
    }
    launcher?.add({
      command: CommandIDs.newSession,
      category,
      args: { isLauncher: true },
      rank: 0
    });
  }
};

const status: JupyterFrontEndPlugin<void> = {
  id: `${EXTENSION_ID}:status`,
  description: 'Shows the ClearML sessions in the status bar.',
  autoStart: true,
  requires: [IClearMLSessions, IStatusBar],
  optional: [ITranslator],
  activate: (
    app: JupyterFrontEnd,
    sessions: ISessionModel,
    statusBar: IStatusBar,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load(TRANSLATION_DOMAIN);
    const item = new StatusItem(sessions, trans, () => {
      void app.commands.execute(CommandIDs.openPanel);
    });
    statusBar.registerStatusItem(`${EXTENSION_ID}:status`, {
      item,
      align: 'left',
      rank: 10
    });
  }
};

/** Terminals on a session look like the local ones. */
async function terminalOptions(
  registry: ISettingRegistry | null
): Promise<Partial<ITerminal.IOptions>> {
  try {
    const settings = await registry?.load(TERMINAL_SETTINGS);
    return settings?.composite ?? {};
  } catch {
    return {}; // JupyterLab without its terminal extension
  }
}

const plugins: JupyterFrontEndPlugin<unknown>[] = [model, plugin, status];
export default plugins;

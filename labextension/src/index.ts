/** The plugins: they put the parts together and hold nothing. */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette, IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import { IDefaultFileBrowser, IFileBrowserFactory } from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import { IStatusBar } from '@jupyterlab/statusbar';
import type { ITerminal } from '@jupyterlab/terminal';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { announcer } from './announcer';
import { addCommands } from './commands';
import { CommandIDs, GLOBAL_COMMANDS, SESSION_COMMANDS } from './commandIds';
import { chosenFolder, shownFolder } from './folder';
import type { IHasContext } from './kernelLink';
import { KernelLink } from './kernelLink';
import { Launcher } from './launchDialog';
import { SessionModel } from './model';
import { showOnce } from './once';
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
    IFileBrowserFactory,
    IDefaultFileBrowser,
    IStateDB
  ],
  activate: (
    app: JupyterFrontEnd,
    sessions: ISessionModel,
    translatorOrNull: ITranslator | null,
    settingRegistry: ISettingRegistry | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    fileBrowserFactory: IFileBrowserFactory | null,
    defaultFileBrowser: IDefaultFileBrowser | null,
    state: IStateDB | null
  ): void => {
    const translator = translatorOrNull ?? nullTranslator;
    const trans = translator.load(TRANSLATION_DOMAIN);
    const { commands, shell } = app;
    const { contents } = app.serviceManager;

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
      confirmShutdown: () => settings?.get('confirmShutdown').composite !== false,
      shownFolder: () => shownFolder(defaultFileBrowser, contents),
      chosenFolder: () =>
        chosenFolder(
          fileBrowserFactory?.tracker.currentWidget ?? defaultFileBrowser,
          contents
        )
    });

    shell.add(panel, 'left', { rank: 600, type: 'ClearML' });
    document.body.append(announcer(sessions, trans));
    restorer?.add(panel, PANEL_ID);
    if (restorer) {
      views.restore(restorer, state);
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

/** The kinds of documents that have a kernel and a toolbar that others can add to. */
const WITH_KERNEL = ['Notebook', 'ConsolePanel'];

const kernelLink: JupyterFrontEndPlugin<void> = {
  id: `${EXTENSION_ID}:kernel-link`,
  description:
    'Tells in notebooks and consoles that the way to their kernel is broken, and shows nothing twice after that.',
  autoStart: true,
  requires: [IClearMLSessions, IToolbarWidgetRegistry],
  optional: [ITranslator],
  activate: (
    app: JupyterFrontEnd,
    model: ISessionModel,
    toolbars: IToolbarWidgetRegistry,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load(TRANSLATION_DOMAIN);
    const showPanel = () => void app.commands.execute(CommandIDs.openPanel);
    for (const kind of WITH_KERNEL) {
      // Where it stands in the toolbar is said in schema/plugin.json.
      toolbars.addFactory<IHasContext>(kind, 'clearml-kernel-link', widget => {
        showOnce(widget.sessionContext);
        return new KernelLink({
          model,
          context: widget.sessionContext,
          trans,
          showPanel
        });
      });
    }
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

const plugins: JupyterFrontEndPlugin<unknown>[] = [model, plugin, status, kernelLink];
export default plugins;

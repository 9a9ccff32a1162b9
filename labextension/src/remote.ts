/**
 * The remote Jupyter server as JupyterLab services: a drive for its files, a manager for its terminals. All of
 * it goes through the proxy under our own base URL, so no address and no token of the remote side is known here.
 */
import { URLExt } from '@jupyterlab/coreutils';
import type { FileBrowser, IFileBrowserFactory } from '@jupyterlab/filebrowser';
import { Uploader } from '@jupyterlab/filebrowser';
import type { Contents, Terminal as TerminalService } from '@jupyterlab/services';
import { Drive, ServerConnection, TerminalManager } from '@jupyterlab/services';
import type { ITerminal, Terminal } from '@jupyterlab/terminal';
import type { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import { newFolderIcon, refreshIcon, ToolbarButton } from '@jupyterlab/ui-components';

import { ComingDrive, driveName } from './comingDrive';
import { notifyError } from './notify';
import { SessionError } from './request';
import type { IPhaseChange, ISession, ISessionModel } from './tokens';
import { TRANSLATION_DOMAIN, shortId } from './tokens';

/** Makes widgets on top of the remote server of a session. */
export class RemoteServices {
  constructor(private readonly _options: RemoteServices.IOptions) {
    this._trans = _options.translator.load(TRANSLATION_DOMAIN);
  }

  /** Open a terminal there: a new one, or the one with that name if it still lives. */
  async createTerminal(session: ISession, name?: string): Promise<Terminal> {
    const { model, translator } = this._options;
    const [{ Terminal: TerminalWidget }, options] = await Promise.all([
      import('@jupyterlab/terminal'),
      this._options.terminalOptions()
    ]);
    const connection = await this._connection(session, name);
    const terminal = new TerminalWidget(connection, options, translator);

    const onPhase = (_: ISessionModel, change: IPhaseChange) => {
      const back = change.session.id === session.id && change.session.phase === 'ready';
      if (back && connection.connectionStatus !== 'connected') {
        terminal.refresh().catch(notifyError);
      }
    };
    model.phaseChanged.connect(onPhase);
    terminal.disposed.connect(() => {
      model.phaseChanged.disconnect(onPhase);
      this._leave(session.id);
    });
    return terminal;
  }

  /** Make a file browser for the files there, with their drive. */
  async createFileBrowser(session: ISession): Promise<FileBrowser> {
    const { factory, translator } = this._options;
    if (!factory) {
      throw new SessionError(
        {
          code: 'no_file_browser',
          message: this._trans.__('JupyterLab has no file browser')
        },
        0
      );
    }
    const browser = factory.createFileBrowser(
      `jp-ClearML-files-${shortId(session.id)}`,
      {
        driveName: this._drive(session).name,
        auto: false,
        restore: false
      }
    );
    await browser.model.cd(); // the root of the drive
    browser.toolbar.addItem(
      'new-folder',
      new ToolbarButton({
        icon: newFolderIcon,
        tooltip: this._trans.__('New folder'),
        onClick: () => {
          browser.createNewDirectory().catch(notifyError);
        }
      })
    );
    browser.toolbar.addItem(
      'upload',
      new Uploader({ model: browser.model, translator })
    );
    browser.toolbar.addItem(
      'refresh',
      new ToolbarButton({
        icon: refreshIcon,
        tooltip: this._trans.__('Refresh the file list'),
        onClick: () => {
          browser.model.refresh().catch(notifyError);
        }
      })
    );
    browser.addClass('jp-ClearML-files');
    return browser;
  }

  /** Have a drive of that name before its session is there; what is asked of it waits for the session, if it comes. */
  expectDrive(name: string, coming: Promise<ISession | null>): void {
    const drive = coming.then(session => session && this._drive(session));
    this._options.contents.addDrive(new ComingDrive(name, drive));
  }

  /** The session is over: ask its server for nothing any more. */
  end(session: ISession): void {
    this._managers.get(session.id)?.dispose();
    this._managers.delete(session.id);
  }

  /** Connect to a terminal there; whoever gets one is a user of the session's manager, until `_leave`. */
  private async _connection(
    session: ISession,
    name?: string
  ): Promise<TerminalService.ITerminalConnection> {
    this._users.set(session.id, (this._users.get(session.id) ?? 0) + 1);
    try {
      const manager = this._terminals(session);
      await manager.ready;
      const known = [...manager.running()].some(terminal => terminal.name === name);
      return name !== undefined && known
        ? manager.connectTo({ model: { name } })
        : await manager.startNew();
    } catch (reason) {
      this._leave(session.id);
      throw reason;
    }
  }

  private _drive(session: ISession): Drive {
    const name = driveName(session.id);
    let drive = this._drives.get(name);
    if (!drive) {
      drive = new Drive({ name, serverSettings: this._settings(session) });
      this._options.contents.addDrive(drive);
      this._drives.set(name, drive);
    }
    return drive;
  }

  private _terminals(session: ISession): TerminalManager {
    let manager = this._managers.get(session.id);
    if (!manager) {
      const serverSettings = this._settings(session);
      manager = new TerminalManager({
        serverSettings,
        terminalAPIClient: new TerminalClient(serverSettings)
      });
      this._managers.set(session.id, manager);
    }
    return manager;
  }

  /** The last user of a session's terminals ends the polling for its terminals. */
  private _leave(id: string): void {
    const left = (this._users.get(id) ?? 1) - 1;
    this._users.set(id, left);
    if (left === 0) {
      this._managers.get(id)?.dispose();
      this._managers.delete(id);
    }
  }

  private _settings(session: ISession): ServerConnection.ISettings {
    const { api } = this._options.model;
    return ServerConnection.makeSettings({
      baseUrl: api.url(`clearml-session/proxy/${session.id}/jupyter/`)
    });
  }

  private readonly _trans: TranslationBundle;
  /** By name; JupyterLab cannot take one away again. */
  private readonly _drives = new Map<string, Drive>();
  private readonly _managers = new Map<string, TerminalManager>();
  /** How many terminals are open, or about to be, by the id of their session. */
  private readonly _users = new Map<string, number>();
}

/**
 * Asks a remote server for its terminals. JupyterLab's own client goes by the page option of the local server: where
 * that one has no terminals, it refuses those of every other. (JupyterLab before 4.4 takes no other client.)
 */
class TerminalClient implements TerminalService.ITerminalAPIClient {
  constructor(readonly serverSettings: ServerConnection.ISettings) {}

  readonly isAvailable = true;

  async startNew(
    options: TerminalService.ITerminal.IOptions = {}
  ): Promise<TerminalService.IModel> {
    const { name, cwd } = options;
    const response = await this._call('', {
      method: 'POST',
      body: JSON.stringify({ name, cwd })
    });
    return (await response.json()) as TerminalService.IModel;
  }

  async listRunning(): Promise<TerminalService.IModel[]> {
    const response = await this._call('', {});
    return (await response.json()) as TerminalService.IModel[];
  }

  async shutdown(name: string): Promise<void> {
    await this._call(encodeURIComponent(name), { method: 'DELETE' });
  }

  private async _call(name: string, init: RequestInit): Promise<Response> {
    const { serverSettings } = this;
    const url = URLExt.join(serverSettings.baseUrl, 'api/terminals', name);
    const response = await ServerConnection.makeRequest(url, init, serverSettings);
    const isGone = init.method === 'DELETE' && response.status === 404;
    if (!response.ok && !isGone) {
      throw await ServerConnection.ResponseError.create(response);
    }
    return response;
  }
}

export namespace RemoteServices {
  /** What they need. */
  export interface IOptions {
    model: ISessionModel;
    contents: Contents.IManager;
    factory: IFileBrowserFactory | null;
    terminalOptions: () => Promise<Partial<ITerminal.IOptions>>;
    translator: ITranslator;
  }
}

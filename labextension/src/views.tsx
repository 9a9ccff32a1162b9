/** What a session shows in the main area: its pages, terminals, files and log. */
import type { ILayoutRestorer, JupyterFrontEnd } from '@jupyterlab/application';
import {
  MainAreaWidget,
  ReactWidget,
  UseSignal,
  WidgetTracker
} from '@jupyterlab/apputils';
import { PageConfig, URLExt } from '@jupyterlab/coreutils';
import type { IFileBrowserFactory } from '@jupyterlab/filebrowser';
import type { ServiceManager } from '@jupyterlab/services';
import type { IStateDB } from '@jupyterlab/statedb';
import type { ITerminal } from '@jupyterlab/terminal';
import type { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import {
  folderIcon,
  IFrame,
  launchIcon,
  listIcon,
  refreshIcon,
  terminalIcon,
  ToolbarButton,
  Toolbar
} from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { PromiseDelegate } from '@lumino/coreutils';
import type { Widget } from '@lumino/widgets';
import * as React from 'react';

import { isLive } from './actions';
import { PhaseChip } from './card';
import { driveName, driveOf } from './comingDrive';
import { editorIcon, sessionIcon } from './icons';
import { LogView } from './log';
import { notifyError } from './notify';
import { RemoteServices } from './remote';
import { SessionError } from './request';
import type { IPhaseChange, ISession, ISessionModel, Phase } from './tokens';
import { EXTENSION_ID, TRANSLATION_DOMAIN, shortId } from './tokens';

/** Which page of a session. */
export type PageKind = 'jupyter' | 'vscode';

/** What it takes to open a view again after a reload of the page. */
interface IViewState {
  kind: 'page' | 'terminal' | 'files' | 'log';
  id: string;
  /** Of a page: its path under the base URL. */
  path?: string;
  /** Title of a page or a log. */
  label?: string;
  /** Of a terminal: its name on the remote server. */
  name?: string;
}

/** Phases of a session that is being connected, as after a restart of the server. */
const COMING: ReadonlySet<Phase> = new Set(['starting', 'connecting', 'reconnecting']);

/** Failures that say that a session is not there any more; all others may pass. */
const GONE: ReadonlySet<string> = new Set(['unknown_session', 'not_configured']);

const RESTORE_COMMAND = 'clearml-session:restore-view';

/** Opens views and finds the ones that are open already. */
export class Views {
  constructor(private readonly _options: Views.IOptions) {
    this._trans = _options.translator.load(TRANSLATION_DOMAIN);
    this._remote = new RemoteServices({
      model: _options.model,
      contents: _options.services.contents,
      factory: _options.fileBrowserFactory,
      terminalOptions: _options.terminalOptions,
      translator: _options.translator
    });
    this._tracker = new WidgetTracker({ namespace: EXTENSION_ID });
    _options.model.phaseChanged.connect(this._onPhase, this);
  }

  /** Bring the views of the last time back; and let JupyterLab bring back the documents from files of sessions. */
  restore(restorer: ILayoutRestorer, state: IStateDB | null = null): void {
    const { commands } = this._options.app;
    commands.addCommand(RESTORE_COMMAND, {
      label: this._trans.__('Restore a view of a ClearML session'),
      execute: args => this._restore(args as unknown as IViewState)
    });
    void restorer.restore(this._tracker, {
      command: RESTORE_COMMAND,
      args: widget =>
        (this._states.get(widget) ?? {}) as unknown as ReadonlyPartialJSONObject,
      name: widget => JSON.stringify(this._states.get(widget) ?? widget.id)
    });
    this._restoreAddressed();
    state
      ?.toJSON()
      .then(saved =>
        Object.values(saved).forEach(
          value => void this._expectDocument(savedPath(value))
        )
      )
      .catch(notifyError);
  }

  /** Open a page of the session in a tab here; the open one, if there is one. */
  openPage(session: ISession, kind: PageKind): void {
    const path = this._path(session, kind);
    const label =
      kind === 'jupyter' ? session.name : this._trans.__('%1 (VS Code)', session.name);
    this._openPage({ kind: 'page', id: session.id, path, label });
  }

  /** Open a page of the session in a browser tab of its own. */
  openInBrowser(session: ISession, kind: PageKind): void {
    const url = this._options.model.api.url(this._path(session, kind));
    window.open(url, '_blank', 'noopener');
  }

  /** Open a web application of the session. */
  openPort(session: ISession, port: number): void {
    const path = `clearml-session/proxy/${session.id}/port/${port}/`;
    this._openPage({
      kind: 'page',
      id: session.id,
      path,
      label: `${session.name}:${port}`
    });
  }

  /** Start a terminal on the remote machine. */
  async openTerminal(session: ISession): Promise<void> {
    await this._terminal(session);
  }

  /** Browse the files of the remote machine; brought to the front, unless nobody has asked for them just now. */
  async openFiles(session: ISession, activate = true): Promise<void> {
    const state: IViewState = { kind: 'files', id: session.id };
    if (this._reveal(state)) {
      return;
    }
    const browser = await this._remote.createFileBrowser(session);
    const widget = new MainAreaWidget({ content: browser });
    widget.toolbar.hide(); // it has one of its own
    const label = this._trans.__('%1 (files)', session.name);
    this._add(widget, state, label, folderIcon, activate);
  }

  /** Show the console of the session. */
  openLog(session: ISession): void {
    const label = this._trans.__('%1 (log)', session.name);
    const state: IViewState = { kind: 'log', id: session.id, label };
    if (!this._reveal(state)) {
      this._log(state, label);
    }
  }

  private _log(state: IViewState, label: string): Widget {
    const content = new LogView(this._options.model, state.id, this._trans);
    const widget = new MainAreaWidget({ content });
    widget.toolbar.hide();
    return this._add(widget, state, label, listIcon);
  }

  /**
   * Views of a session that somebody shut down go with it. Where it ended by itself its pages and terminals stay: what
   * can still be read there may be all that is left. Its files are gone in any case.
   */
  private _onPhase(_: ISessionModel, { session }: IPhaseChange): void {
    const ended = session.phase === 'ended' || session.phase === 'failed';
    if (session.phase !== 'stopping' && !(ended && !isLive(session))) {
      return;
    }
    const wanted = session.phase !== 'failed' && !session.error;
    this._tracker
      .filter(widget => this._states.get(widget)?.id === session.id)
      .forEach(widget => {
        const kind = this._states.get(widget)?.kind;
        if (kind === 'files' || (wanted && kind !== 'log')) {
          widget.dispose();
        }
      });
    this._remote.end(session);
  }

  private async _terminal(
    session: ISession,
    name?: string,
    activate = true
  ): Promise<void> {
    const terminal = await this._remote.createTerminal(session, name);
    // Before it is ready it cannot take the focus, and what is typed would be lost.
    const widget = new MainAreaWidget({ content: terminal, reveal: terminal.ready });
    const state: IViewState = {
      kind: 'terminal',
      id: session.id,
      name: terminal.session.name
    };
    const label = this._trans.__(
      '%1 (terminal %2)',
      session.name,
      terminal.session.name
    );
    widget.toolbar.hide();
    this._add(widget, state, label, terminalIcon, activate);
    // A terminal calls itself "Terminal 1" when it is connected, as the local ones do.
    terminal.title.changed.connect(() => {
      if (terminal.title.label !== label) {
        terminal.title.label = label;
      }
    });
  }

  private _openPage(state: IViewState): void {
    if (!this._reveal(state)) {
      this._page(state);
    }
  }

  private _page(state: IViewState): Widget {
    const { model } = this._options;
    const url = model.api.url(state.path ?? '');
    const label = state.label ?? shortId(state.id);
    const content = new IFrame();
    const frame = content.node.querySelector('iframe');
    if (frame) {
      // The page shares our origin in any case, so a sandbox would protect nothing and break downloads.
      frame.removeAttribute('sandbox');
      frame.allow = 'clipboard-read; clipboard-write; fullscreen';
      frame.title = label;
    }
    content.url = url;
    content.addClass('jp-ClearML-page');
    const widget = new MainAreaWidget({ content });
    const trans = this._trans;
    widget.toolbar.addItem('phase', this._phaseLabel(state.id));
    widget.toolbar.addItem('spacer', Toolbar.createSpacerItem());
    widget.toolbar.addItem(
      'reload',
      new ToolbarButton({
        icon: refreshIcon,
        tooltip: trans.__('Reload the page'),
        onClick: () => {
          try {
            frame?.contentWindow?.location.reload();
          } catch {
            content.url = url; // it has left our origin: nothing can be asked of it there
          }
        }
      })
    );
    widget.toolbar.addItem(
      'browser',
      new ToolbarButton({
        icon: launchIcon,
        tooltip: trans.__('Open in a new browser tab'),
        onClick: () => {
          window.open(addressIn(frame) ?? url, '_blank', 'noopener');
        }
      })
    );
    const icon = state.path?.includes('/vscode') ? editorIcon : sessionIcon;
    return this._add(widget, state, label, icon);
  }

  private _phaseLabel(id: string): Widget {
    const { model } = this._options;
    const widget = ReactWidget.create(
      <UseSignal signal={model.changed}>
        {() => {
          const session = model.get(id);
          return session ? (
            <span className="jp-ClearML-pageStatus">
              <PhaseChip session={session} trans={this._trans} />
              <span className="jp-ClearML-dim">
                {session.phase === 'ready' ? session.name : session.phase_text}
              </span>
            </span>
          ) : (
            <span className="jp-ClearML-dim">
              {model.loading
                ? this._trans.__('Asking ClearML…')
                : this._trans.__('The session has ended')}
            </span>
          );
        }}
      </UseSignal>
    );
    widget.addClass('jp-ClearML-pageLabel');
    return widget;
  }

  private _add(
    widget: MainAreaWidget<Widget>,
    state: IViewState,
    label: string,
    icon: typeof sessionIcon,
    activate = true
  ): Widget {
    this._count += 1;
    widget.id = `jp-ClearML-view-${this._count}-${shortId(state.id)}`;
    widget.title.label = label;
    widget.title.caption = label;
    widget.title.icon = icon;
    widget.title.closable = true;
    this._states.set(widget, state);
    widget.disposed.connect(() => {
      this._states.delete(widget);
    });
    this._options.app.shell.add(widget, 'main', { activate });
    if (activate) {
      this._options.app.shell.activateById(widget.id);
    }
    void this._tracker.add(widget);
    return widget;
  }

  private _reveal(state: IViewState): boolean {
    const open = this._tracker.find(widget => {
      const other = this._states.get(widget);
      return (
        other?.kind === state.kind && other.id === state.id && other.path === state.path
      );
    });
    if (open) {
      this._options.app.shell.activateById(open.id);
    }
    return open !== undefined;
  }

  /**
   * Pages and logs come back at once, at their old place: nothing that JupyterLab waits for may wait for ClearML.
   * What needs the session comes when that is ready; and what turns out to belong to none goes again, but for the log of
   * one that has ended.
   */
  private _restore(state: IViewState): void {
    const { model } = this._options;
    const view =
      state.kind === 'page'
        ? this._page(state)
        : state.kind === 'log'
          ? this._log(state, state.label ?? shortId(state.id))
          : null;
    if (view) {
      void model.ready.then(async () => {
        const session = model.get(state.id);
        const over = !model.error && (!session || !isLive(session));
        if (over && !(state.kind === 'log' && (await this._hasLog(state.id)))) {
          view.dispose();
        }
      });
    }
    if (!view) {
      const coming = this._untilReady(() => model.get(state.id));
      const opened =
        state.kind === 'files'
          ? this._afterStart(coming).then(
              session => session && this.openFiles(session, false)
            )
          : coming.then(
              session => session && this._terminal(session, state.name, false)
            );
      opened.catch(notifyError);
    }
  }

  /**
   * The address of the page names the document in front. JupyterLab would look for the file browser of its drive at once,
   * and show that there is none. Nearly always the document is in the workspace, and comes back with that.
   */
  private _restoreAddressed(): void {
    const path = PageConfig.getOption('treePath');
    if (!driveOf(path)) {
      return;
    }
    PageConfig.setOption('treePath', '');
    this._expectDocument(path)
      .then(
        session =>
          session &&
          !this._documents().some(widget => pathOf(widget) === path) &&
          this._options.app.commands.execute('docmanager:open', { path })
      )
      .catch(notifyError);
  }

  /**
   * JupyterLab opens documents itself, while it starts. Those from the files of a session are opened unread, at their
   * old place; they are read when the session is ready, and go again without a word where it is gone.
   */
  private async _expectDocument(path: string): Promise<ISession | null> {
    const drive = driveOf(path);
    if (!drive) {
      return null;
    }
    let coming = this._expected.get(drive);
    if (!coming) {
      const find = () =>
        this._options.model.active.find(({ id }) => driveName(id) === drive);
      coming = this._afterStart(this._untilReady(find));
      this._expected.set(drive, coming);
      this._remote.expectDrive(drive, coming);
      void coming.then(session => {
        if (!session) {
          this._documents()
            .filter(widget => driveOf(pathOf(widget)) === drive)
            .forEach(widget => widget.dispose());
        }
      });
    }
    return coming;
  }

  private _documents(): Widget[] {
    return [...this._options.app.shell.widgets('main')].filter(pathOf);
  }

  /** The files of a session are not asked for before JupyterLab has started: it would wait for them. */
  private async _afterStart<T>(coming: Promise<T>): Promise<T> {
    await this._options.app.restored;
    return coming;
  }

  /** Whether there is a log to be read still: of a session that has ended there is. */
  private async _hasLog(id: string): Promise<boolean> {
    const { model } = this._options;
    try {
      model.put(await model.api.session(id));
      return true;
    } catch (reason) {
      return !GONE.has(SessionError.from(reason).code);
    }
  }

  /** The session once it is ready; null where it is gone, or nobody connects it. */
  private _untilReady(find: () => ISession | undefined): Promise<ISession | null> {
    const { model } = this._options;
    const found = new PromiseDelegate<ISession | null>();
    const look = () => {
      const session = find();
      if (session ? COMING.has(session.phase) : model.loading) {
        return;
      }
      model.changed.disconnect(look);
      found.resolve(session?.phase === 'ready' ? session : null);
    };
    model.changed.connect(look);
    look();
    return found.promise;
  }

  private _path(session: ISession, kind: PageKind): string {
    const { endpoints } = session;
    const path =
      kind === 'jupyter'
        ? (endpoints.jupyter_open ?? endpoints.jupyter)
        : (endpoints.vscode_open ?? endpoints.vscode);
    if (!path) {
      throw new SessionError(
        {
          code: 'not_there',
          message:
            kind === 'jupyter'
              ? this._trans.__('This session has no JupyterLab')
              : this._trans.__('This session has no VS Code')
        },
        409
      );
    }
    return URLExt.join('/', path).slice(1);
  }

  private readonly _trans: TranslationBundle;
  private readonly _remote: RemoteServices;
  private readonly _tracker: WidgetTracker<MainAreaWidget<Widget>>;
  private readonly _states = new Map<Widget, IViewState>();
  /** The sessions of documents, by the names of their drives. */
  private readonly _expected = new Map<string, Promise<ISession | null>>();
  private _count = 0;
}

/** Where a frame is; undefined where it has left our origin, of which a browser tells nothing. */
function addressIn(frame: HTMLIFrameElement | null): string | undefined {
  try {
    return frame?.contentWindow?.location.href;
  } catch {
    return undefined;
  }
}

/** The path of a document; empty where the widget is none. */
function pathOf(widget: Widget): string {
  return (widget as { context?: { path?: string } }).context?.path ?? '';
}

/** The path of the document that JupyterLab has saved so; empty where it is none. */
function savedPath(value: unknown): string {
  const path = (value as { data?: { path?: unknown } } | null)?.data?.path;
  return typeof path === 'string' ? path : '';
}

export namespace Views {
  /** What views need. */
  export interface IOptions {
    app: Pick<JupyterFrontEnd, 'commands' | 'restored' | 'shell'>;
    model: ISessionModel;
    services: ServiceManager.IManager;
    fileBrowserFactory: IFileBrowserFactory | null;
    /** How the user wants terminals to look. */
    terminalOptions: () => Promise<Partial<ITerminal.IOptions>>;
    translator: ITranslator;
  }
}

/** Notifications about sessions that were started from here: long things show progress and can be cancelled. */
import { Notification } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { CommandRegistry } from '@lumino/commands';
import type { IDisposable } from '@lumino/disposable';
import { PromiseDelegate } from '@lumino/coreutils';

import { can } from './actions';
import { CommandIDs } from './commandIds';
import { SessionError } from './request';
import type { ISession, ISessionModel } from './tokens';

/** Follows sessions on their way to `ready`, in one notification each. */
export class Progress implements IDisposable {
  constructor(
    private readonly _model: ISessionModel,
    private readonly _commands: CommandRegistry,
    private readonly _trans: TranslationBundle
  ) {
    this._model.changed.connect(this._onChanged, this);
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** Show how a session comes up. */
  follow(session: ISession): void {
    if (this._followed.has(session.id)) {
      return;
    }
    const { id } = session;
    const notification = Notification.emit(this._text(session), 'in-progress', {
      autoClose: false,
      progress: fraction(session),
      actions: [
        { label: this._trans.__('Show'), callback: this._showPanel },
        {
          label: this._trans.__('Shut Down'),
          displayType: 'warn',
          callback: () => void this._commands.execute(CommandIDs.shutdown, { id })
        }
      ]
    });
    this._followed.set(id, { notification, way: new Way() });
    this._onChanged();
  }

  /** Resolves when the session is ready; rejects with a SessionError when it will not be, or was given up meanwhile. */
  untilReady(id: string): Promise<ISession> {
    const waiter = new PromiseDelegate<ISession>();
    const way = new Way();
    const look = () => {
      const session = this._model.get(id);
      const end = way.see(session);
      if (session && end === 'ready') {
        waiter.resolve(session);
      } else if (end === 'cancelled') {
        waiter.reject(SessionError.cancelled());
      } else if (end) {
        waiter.reject(
          new SessionError(
            session?.error ?? {
              code: 'session_aborted',
              message: this._trans.__('The session has ended')
            },
            424
          )
        );
      }
      return end !== null;
    };
    if (!look()) {
      const onChanged = () => {
        if (look()) {
          this._model.changed.disconnect(onChanged);
        }
      };
      this._model.changed.connect(onChanged);
    }
    return waiter.promise;
  }

  /** Tell that a session is ready, with a button that opens something of it. */
  tellReady(session: ISession, label: string, open: () => void): void {
    Notification.success(this._trans.__('%1 is ready', session.name), {
      autoClose: 15_000,
      actions: [{ label, displayType: 'accent', callback: open }]
    });
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    this._model.changed.disconnect(this._onChanged, this);
    this._followed.forEach(({ notification }) => Notification.dismiss(notification));
    this._followed.clear();
  }

  private _onChanged(): void {
    for (const [id, { notification, way }] of this._followed) {
      const session = this._model.get(id);
      const end = way.see(session);
      if (session && end === null) {
        Notification.update({
          id: notification,
          message: this._text(session),
          progress: fraction(session)
        });
        continue;
      }
      this._followed.delete(id);
      Notification.dismiss(notification);
      if (session && end === 'ready') {
        this._isReady(session);
      } else if (session && end === 'failed') {
        this._failed(session);
      }
    }
  }

  private _isReady(session: ISession): void {
    const { id } = session;
    if (can(session, 'jupyter')) {
      const open = () => void this._commands.execute(CommandIDs.openJupyter, { id });
      this.tellReady(session, this._trans.__('Open JupyterLab'), open);
    } else {
      this.tellReady(session, this._trans.__('Show'), this._showPanel);
    }
  }

  private _failed(session: ISession): void {
    const { id } = session;
    const text = session.error?.message ?? session.phase_text;
    Notification.error(`${session.name}: ${text}`, {
      autoClose: false,
      actions: [
        { label: this._trans.__('Show'), callback: this._showPanel },
        {
          label: this._trans.__('Log'),
          callback: () => void this._commands.execute(CommandIDs.log, { id })
        }
      ]
    });
  }

  private _text(session: ISession): string {
    return this._trans.__('%1: %2', session.name, session.phase_text);
  }

  private readonly _showPanel = () => void this._commands.execute(CommandIDs.openPanel);

  /** Notifications by the id of the session. */
  private readonly _followed = new Map<string, { notification: string; way: Way }>();
  private _isDisposed = false;
}

/** The way of one session to `ready`. */
class Way {
  /** Take the session as it is now. Returns how the way has ended; null while it goes on. */
  see(session: ISession | undefined): 'ready' | 'failed' | 'over' | 'cancelled' | null {
    switch (session?.phase) {
      case 'ready':
      case 'failed':
        return session.phase;
      case 'ended':
      case undefined:
        return 'over';
      case 'stopping':
        return 'cancelled';
      case 'services_up':
        // On the way only detaching leads there; before it, that is where the session stood.
        return this._begun ? 'cancelled' : null;
      default:
        this._begun = true;
        return null;
    }
  }

  private _begun = false;
}

/** How far a session has come, 0 to 1. */
export function fraction(session: ISession): number {
  const { progress } = session;
  if (!progress) {
    return 0;
  }
  const within = progress.fraction ?? 0;
  return Math.min(
    1,
    (Math.max(0, progress.step - 1) + within) / Math.max(1, progress.steps - 1)
  );
}

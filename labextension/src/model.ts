/**
 * The state of the front end. It owns what is known about ClearML and its sessions; components render it,
 * commands act on it.
 *
 * A snapshot comes over REST with a revision, then each event carries the next one. Any other number means
 * that something was missed (a lost websocket, a restarted server), and a new snapshot is taken. A slow poll
 * covers what no event can tell: that there are no events.
 */
import type { Event } from '@jupyterlab/services';
import type { IPoll } from '@lumino/polling';
import { Poll } from '@lumino/polling';
import { PromiseDelegate } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { isLive } from './actions';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type {
  IBackendStatus,
  IErrorBody,
  IPhaseChange,
  ISession,
  ISessionModel
} from './tokens';
import { EVENT_SCHEMA_ID, isOver } from './tokens';

/**
 * Milliseconds between two looks without events. Well below the time for which the server goes on asking
 * ClearML after a client's last request.
 */
const POLL_INTERVAL = 30_000;

/**
 * Milliseconds to the look after the first failed one, doubled with each further one up to the interval: that the
 * Jupyter server is back should be seen soon.
 */
const RETRY_INTERVAL = 3_000;

/** Milliseconds for which events may arrive after a snapshot that holds them already. */
const LATE_EVENTS = 3_000;

/** One event of the server half. */
interface ISessionEvent {
  revision: number;
  kind: 'changed' | 'removed' | 'log' | 'backend';
  session?: ISession;
  error?: IErrorBody | null;
}

/** The sessions of one Jupyter server. */
export class SessionModel implements ISessionModel {
  constructor(options: SessionModel.IOptions) {
    this.api = options.api;
    this._events = options.events;
    this._events?.connect(this._onEvent, this);
    this._poll = new Poll({
      name: 'jupyterlab-clearml-session:sessions',
      factory: () => this._look(),
      frequency: pollFrequency(0),
      standby: 'when-hidden',
      auto: false
    });
    this._onVisible = () => {
      if (document.visibilityState === 'visible' && !this.isDisposed) {
        void this.refresh();
      }
    };
    document.addEventListener('visibilitychange', this._onVisible);
    window.addEventListener('online', this._onVisible);
  }

  readonly api: SessionAPI;

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get phaseChanged(): ISignal<this, IPhaseChange> {
    return this._phaseChanged;
  }

  get status(): IBackendStatus | null {
    return this._status;
  }

  get error(): SessionError | null {
    return this._error;
  }

  get loading(): boolean {
    return this._revision === null;
  }

  get ready(): Promise<void> {
    return this._ready.promise;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  get active(): ReadonlyArray<ISession> {
    return this._list(session => this._isActive(session));
  }

  get ended(): ReadonlyArray<ISession> | null {
    return this._endedKnown ? this._list(session => !this._isActive(session)) : null;
  }

  get allUsers(): boolean {
    return this._allUsers;
  }
  set allUsers(value: boolean) {
    if (value === this._allUsers) {
      return;
    }
    this._allUsers = value;
    this._changed.emit();
    void this.refresh();
  }

  get showEnded(): boolean {
    return this._showEnded;
  }
  set showEnded(value: boolean) {
    if (value === this._showEnded) {
      return;
    }
    this._showEnded = value;
    this._changed.emit();
    if (value) {
      void this.refresh();
    }
  }

  get(id: string): ISession | undefined {
    return this._sessions.get(id);
  }

  /** Begin to look; nothing is asked before. */
  start(): void {
    void this._poll.start();
  }

  async refresh(): Promise<void> {
    if (this._isDisposed) {
      return;
    }
    if (this._looking) {
      await this._look(); // the poll would take it for the refresh that it is making
      return;
    }
    await this._poll.refresh();
    await this._poll.tick.catch(() => undefined);
  }

  put(session: ISession): void {
    if (!session.mine) {
      this._pinned.add(session.id);
    }
    this._set(session);
    this._noteOrder(session.id);
    this._changed.emit();
  }

  remove(id: string): void {
    this._attention.delete(id);
    this._pinned.delete(id);
    this._noteOrder(id);
    if (this._sessions.delete(id)) {
      this._changed.emit();
    }
  }

  dismiss(id: string): void {
    if (this._attention.delete(id)) {
      this._changed.emit();
    }
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    document.removeEventListener('visibilitychange', this._onVisible);
    window.removeEventListener('online', this._onVisible);
    this._events?.disconnect(this._onEvent, this);
    this._poll.dispose();
    Signal.clearData(this);
  }

  /** One look at a time: what is asked for meanwhile makes one more after it. */
  private _look(): Promise<void> {
    if (this._looking) {
      this._lookAgain = true;
      return this._looking;
    }
    const look = async () => {
      try {
        do {
          this._lookAgain = false;
          await this._lookOnce();
        } while (this._lookAgain && !this._isDisposed);
      } finally {
        this._looking = null;
      }
    };
    return (this._looking = look());
  }

  /**
   * Ask for the status, and for the sessions where there are some. Never throws: after a factory that does, Poll draws
   * the wait at random, up to twice the last one.
   */
  private async _lookOnce(): Promise<void> {
    try {
      this._status = await this.api.status();
      if (this._status.mode === 'unconfigured') {
        this._sessions.clear();
        this._revision = this._revision ?? 0;
        this._error = null;
      } else {
        await this._snapshot();
        this._error = this._status.error
          ? new SessionError(this._status.error, 503)
          : null;
      }
      this._failedLooks = 0;
    } catch (reason) {
      this._failedLooks += 1;
      this._error = SessionError.from(reason);
    }
    this._poll.frequency = pollFrequency(this._failedLooks);
    this._ready.resolve();
    if (!this._isDisposed) {
      this._changed.emit();
    }
  }

  /** Replace what we know by what the server knows, then apply the events that came meanwhile. */
  private async _snapshot(): Promise<void> {
    const state = this._showEnded ? 'all' : 'active';
    const meanwhile: ISessionEvent[] = [];
    this._meanwhile = meanwhile;
    this._ordered.clear();
    try {
      const { sessions, revision } = await this.api.sessions(state, this._allUsers);
      const there = new Set(sessions.map(session => session.id));
      // Those that were asked for by id; and of those that were not over when last seen, how they have ended.
      const live = [...this._sessions.values()].filter(
        session => this._isShown(session) && isLive(session)
      );
      const missing = new Set(this._pinned);
      live.forEach(session => missing.add(session.id));
      there.forEach(id => missing.delete(id));
      const found = await Promise.all([...missing].map(id => this._askFor(id)));
      for (const session of found) {
        if (session) {
          sessions.push(session);
          there.add(session.id);
        }
      }
      for (const [id, session] of this._sessions) {
        const notAsked = state === 'active' && !this._isActive(session);
        const kept = this._attention.has(id) || this._ordered.has(id) || notAsked;
        if (!there.has(id) && !kept) {
          this._sessions.delete(id);
        }
      }
      sessions
        .filter(session => !this._ordered.has(session.id))
        .forEach(session => this._set(session));
      this._endedKnown = this._endedKnown || state === 'all';
      this._revision = revision;
      this._snapshotAt = Date.now();
    } finally {
      this._meanwhile = null;
    }
    meanwhile.forEach(event => this._apply(event));
  }

  /** A snapshot that is on its way may be older than what an order has just done: one more is taken after it. */
  private _noteOrder(id: string): void {
    if (this._meanwhile !== null) {
      this._ordered.add(id);
      this._lookAgain = true;
    }
  }

  /** A session that the list does not hold; not there any more, it is forgotten. */
  private async _askFor(id: string): Promise<ISession | null> {
    try {
      return await this.api.session(id);
    } catch (reason) {
      if (SessionError.from(reason).code === 'unknown_session') {
        this._pinned.delete(id);
        return null;
      }
      return this._sessions.get(id) ?? null;
    }
  }

  private _onEvent(_: unknown, emission: Event.Emission): void {
    if (emission.schema_id !== EVENT_SCHEMA_ID || this._isDisposed) {
      return;
    }
    const event = emission as unknown as ISessionEvent;
    if (this._meanwhile !== null) {
      this._meanwhile.push(event);
    } else if (this._revision !== null) {
      this._apply(event);
      this._changed.emit();
    }
    // Else the first snapshot is still to come, and will hold what the event tells.
  }

  private _apply(event: ISessionEvent): void {
    const known = this._revision ?? 0;
    if (event.revision <= known) {
      // The snapshot holds it already, unless a restarted server counts anew.
      if (Date.now() - this._snapshotAt > LATE_EVENTS) {
        this._catchUp();
      }
      return;
    }
    if (event.revision > known + 1) {
      this._catchUp();
      return;
    }
    this._revision = event.revision;
    switch (event.kind) {
      case 'changed':
      case 'log':
        if (event.session && this._concerns(event.session)) {
          this._set(event.session);
        }
        break;
      case 'removed':
        if (event.session) {
          this._sessions.delete(event.session.id);
          this._attention.delete(event.session.id);
        }
        break;
      case 'backend':
        this._error = event.error ? new SessionError(event.error, 503) : null;
        this._catchUp();
        break;
    }
  }

  private _concerns(session: ISession): boolean {
    return this._allUsers || session.mine || this._sessions.has(session.id);
  }

  /** Take a new snapshot; many reasons within one moment make one. */
  private _catchUp(): void {
    if (this._catchingUp) {
      return;
    }
    this._catchingUp = true;
    queueMicrotask(() => {
      this._catchingUp = false;
      void this.refresh();
    });
  }

  private _set(session: ISession): void {
    const before = this._sessions.get(session.id);
    if (before && !isOver(before.phase) && session.phase === 'failed') {
      this._attention.add(session.id);
    }
    this._sessions.set(session.id, session);
    if (before?.phase !== session.phase) {
      this._phaseChanged.emit({ session, before: before?.phase ?? null });
    }
  }

  /** A failed connection or a failed start, as long as the Task lives or the user has not put it away. */
  private _isActive(session: ISession): boolean {
    if (!isOver(session.phase)) {
      return true;
    }
    return (
      session.phase === 'failed' && (isLive(session) || this._attention.has(session.id))
    );
  }

  private _isShown(session: ISession): boolean {
    return (
      this._allUsers || session.mine || session.attached || this._pinned.has(session.id)
    );
  }

  private _list(wanted: (session: ISession) => boolean): ReadonlyArray<ISession> {
    return [...this._sessions.values()]
      .filter(session => this._isShown(session) && wanted(session))
      .sort((a, b) => (b.created ?? '').localeCompare(a.created ?? ''));
  }

  private readonly _events: Event.Stream | null;
  private readonly _poll: Poll;
  private readonly _onVisible: () => void;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _phaseChanged = new Signal<this, IPhaseChange>(this);
  private readonly _ready = new PromiseDelegate<void>();
  private readonly _sessions = new Map<string, ISession>();
  /** Failed before the user's eyes: stay in sight until put away. */
  private readonly _attention = new Set<string>();
  /** Other people's sessions that the user asked for by id. */
  private readonly _pinned = new Set<string>();
  private _status: IBackendStatus | null = null;
  private _error: SessionError | null = null;
  private _revision: number | null = null;
  /** Events that came while a snapshot was on its way; null when none is. */
  private _meanwhile: ISessionEvent[] | null = null;
  /** Sessions that orders have changed since the last snapshot was asked for. */
  private readonly _ordered = new Set<string>();
  private _snapshotAt = 0;
  private _looking: Promise<void> | null = null;
  private _failedLooks = 0;
  private _lookAgain = false;
  private _allUsers = false;
  private _showEnded = false;
  private _endedKnown = false;
  private _catchingUp = false;
  private _isDisposed = false;
}

function pollFrequency(failedLooks: number): IPoll.Frequency {
  const interval =
    failedLooks === 0
      ? POLL_INTERVAL
      : Math.min(POLL_INTERVAL, RETRY_INTERVAL * 2 ** (failedLooks - 1));
  return { interval, backoff: false, max: POLL_INTERVAL };
}

export namespace SessionModel {
  /** How a model is made. */
  export interface IOptions {
    api: SessionAPI;
    /** The server's event stream; null where there is none. */
    events: Event.Stream | null;
  }
}

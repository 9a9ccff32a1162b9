/**
 * Names and shapes that everything else here shares: the REST contract as types, and the token by which
 * other extensions get at the sessions.
 */
import { Token } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import type { ISignal } from '@lumino/signaling';

import type { SessionAPI, SessionError } from './request';

/** The name of the package, and the prefix of everything that needs a unique name. */
export const EXTENSION_ID = 'jupyterlab-clearml-session';

/** The plugin whose settings the user sees. */
export const PLUGIN_ID = `${EXTENSION_ID}:plugin`;

/** Where translators find the texts of this extension. */
export const TRANSLATION_DOMAIN = 'jupyterlab_clearml_session';

/** The schema of the events that the server half emits. */
export const EVENT_SCHEMA_ID =
  'https://schema.jupyterlab-clearml-session.org/session/v1';

/** Where a session stands; computed by the server and shown as it is. */
export type Phase =
  | 'created'
  | 'queued'
  | 'starting'
  | 'services_up'
  | 'connecting'
  | 'ready'
  | 'reconnecting'
  | 'stopping'
  | 'ended'
  | 'failed';

/** Something on the ClearML server, by id and name. */
export interface IRef {
  id: string;
  name: string;
}

/** The body of a failure, as the contract has it. */
export interface IErrorBody {
  code: string;
  message: string;
  hint?: string;
  detail?: { field?: string; log_tail?: string[]; [key: string]: unknown };
}

/** Answer of `GET status`. */
export interface IBackendStatus {
  mode: 'server' | 'local' | 'unconfigured';
  api_server: string | null;
  web_server: string | null;
  user: IRef | null;
  reachable: boolean;
  version: string | null;
  error?: IErrorBody;
}

/** An agent; `idle_s` is null while it is busy. */
export interface IWorker {
  id: string;
  busy: boolean;
  idle_s: number | null;
}

/** A queue with what waits in it and who serves it. */
export interface IQueue {
  id: string;
  name: string;
  tags: string[];
  system_tags?: string[];
  length: number;
  workers: IWorker[];
}

/** The state of the SSH connections of an attached session. */
export interface ITunnel {
  state: 'down' | 'connecting' | 'up' | 'reconnecting' | 'failed';
  since: string | null;
  attempt: number;
  cause?: IErrorBody;
  rtt_ms: number | null;
  host_key: 'pinned' | 'vault' | 'unverified';
}

/** How far a session has come; steps are counted from 1, `fraction` is 0 to 1. */
export interface IProgress {
  step: number;
  steps: number;
  text: string;
  last_line: string;
  fraction?: number;
}

/** Paths under the base URL; the `_open` ones are what a person wants to see first. */
export interface IEndpoints {
  jupyter?: string;
  jupyter_open?: string;
  vscode?: string;
  vscode_open?: string;
  ssh?: { user: string; host: string; port: number };
}

/** One value of a launch option. */
export type SpecValue =
  string | number | boolean | null | string[] | { [key: string]: string };

/** Launch options by name; which there are is told by `GET schema`. */
export type LaunchSpec = { [option: string]: SpecValue };

/** A session: a ClearML Task, and what this Jupyter server knows beside it. */
export interface ISession {
  id: string;
  name: string;
  phase: Phase;
  phase_text: string;
  phase_since: string;
  status: string;
  queue: { id: string; name: string; position?: number; workers?: number } | null;
  project: string;
  tags: string[];
  comment: string;
  user: IRef | null;
  mine: boolean;
  created: string | null;
  started: string | null;
  ended: string | null;
  web_url: string | null;
  parent: string | null;
  launched_by: string;
  attached: boolean;
  tunnel: ITunnel;
  endpoints: IEndpoints;
  kernelspecs: string[];
  spec: LaunchSpec;
  progress: IProgress | null;
  error?: IErrorBody;
  /** Why its kernels cannot be had, where the rest of it can. */
  kernels_error?: IErrorBody;
}

/** One line of a session's console. */
export interface ILogLine {
  time: string;
  text: string;
}

/** How busy the machine of a session is; sizes in bytes. */
export interface IMetrics {
  /** Over all cores, 0 to 100. */
  cpu_percent: number;
  cpu_count?: number;
  /** Empty where the machine does not tell. */
  memory: { total?: number; used?: number };
  disk: { total: number; used: number; free: number };
  gpus: IGpu[];
  /** Seconds since something last worked there. */
  idle_s: number;
}

/** A graphics processor; a text where it does not tell a number. */
export interface IGpu {
  index: number;
  name: string;
  utilization_percent: number | string;
  memory_used_mb: number | string;
  memory_total_mb: number | string;
  temperature_c: number | string;
}

/** A kernel that lives on a session; `adopted` where a local kernel is connected to it. */
export interface IRemoteKernel {
  id: string;
  name: string;
  state: string;
  started: string | null;
  adopted: boolean;
  /** Seconds since it last worked. */
  idle_s?: number;
  /** What is known of its birth: the notebook that it was started for, say. */
  meta?: { notebook?: string };
}

/** A Task that can be debugged. */
export interface ITask {
  id: string;
  name: string;
  status: string;
  project: string;
  created: string | null;
  repository: string;
  branch: string;
  commit: string;
}

/** A local TCP port that leads to a port of the session. */
export interface IForward {
  local_port: number;
  remote_port: number | 'ssh';
  ssh_command?: string;
  ssh_config?: string;
  /** Only in the answer to who asked for it. */
  password?: string;
}

/** A port of the remote machine that something listens on. */
export interface IListeningPort {
  port: number;
  /** What listens; empty where it is another user's. */
  process: string;
}

/** What `clone_repo` would send of the git repository around a folder. */
export interface IRepository {
  name: string;
  /** Files in the diff. */
  files: string[];
  /** Changed files that are not sent, and why. */
  left_out: Array<{ path: string; reason: string }>;
  /** Commits that the remote does not have; the diff holds them. */
  local_commits: number;
  clone_repo: { url: string; branch: string; commit: string; diff: string };
}

/** Answer of `GET presets`. */
export interface IPresets {
  presets: { [name: string]: LaunchSpec };
  last: LaunchSpec | null;
  /** What is wrong with the file of the presets. */
  messages?: string[];
  /** Whether the command line has left something that can be imported. */
  importable?: boolean;
}

/** Answer of `POST import-presets`. */
export interface IImportedPresets extends IPresets {
  /** Options that could not be taken over. */
  refused: string[];
}

/** The preset that is made of what the command line remembered. */
export const IMPORTED_PRESET = 'clearml-session';

/** One property of the JSON Schema of LaunchSpec. */
export interface ISpecProperty {
  title?: string;
  description?: string;
  type?: string | string[];
  default?: SpecValue;
  enum?: string[];
  format?: string;
  items?: { type?: string };
  properties?: { [name: string]: ISpecProperty };
  required?: string[];
  additionalProperties?: boolean | { type?: string };
  minLength?: number;
  maxLength?: number;
  minimum?: number;
  maximum?: number;
  pattern?: string;
  writeOnly?: boolean;
  'x-group'?: string;
  'x-multiline'?: boolean;
}

/** Answer of `GET schema`: what the launch dialog is drawn from. */
export interface ISpecSchema {
  title?: string;
  type: string;
  properties: { [name: string]: ISpecProperty };
  required?: string[];
  'x-groups'?: string[];
}

/** A session went from one phase to another. */
export interface IPhaseChange {
  session: ISession;
  before: Phase | null;
}

/** The state that all parts of the front end render. */
export interface ISessionModel extends IDisposable {
  /** The calls of the server half. */
  readonly api: SessionAPI;
  /** Something below has changed. */
  readonly changed: ISignal<ISessionModel, void>;
  /** A session has entered another phase. */
  readonly phaseChanged: ISignal<ISessionModel, IPhaseChange>;
  /** Where we stand with ClearML; null until the first answer. */
  readonly status: IBackendStatus | null;
  /** Why the Jupyter server, or ClearML behind it, cannot be asked at the moment. */
  readonly error: SessionError | null;
  /** Sessions that are not over, and those that failed before the user's eyes; newest first. */
  readonly active: ReadonlyArray<ISession>;
  /** Sessions that are over; null until somebody asked for them. */
  readonly ended: ReadonlyArray<ISession> | null;
  /** True until the first list of sessions has come. */
  readonly loading: boolean;
  /** Other people's sessions too. */
  allUsers: boolean;
  /** Whether the ended sessions are wanted; they cost ClearML a call of their own. */
  showEnded: boolean;
  /** The session with that id, if it is known. */
  get(id: string): ISession | undefined;
  /** Ask again for everything that is shown, now. */
  refresh(): Promise<void>;
  /** Take a session from an answer of the server at once, without waiting for its event. */
  put(session: ISession): void;
  /** Move a failed session, which the user has seen, to the ended ones. */
  dismiss(id: string): void;
  /** Forget a session that was deleted. */
  remove(id: string): void;
  /** Resolves when the first list of sessions has come, or could not be had. */
  readonly ready: Promise<void>;
}

/** Gives other extensions the sessions. */
export const IClearMLSessions = new Token<ISessionModel>(
  `${EXTENSION_ID}:IClearMLSessions`,
  'The ClearML sessions of this Jupyter server, and the calls to act on them.'
);

/** Phases in which a session never changes by itself again. */
export function isOver(phase: Phase): boolean {
  return phase === 'ended' || phase === 'failed';
}

/** The first characters of an id: enough for people, and for the names of kernelspecs. */
export function shortId(id: string): string {
  return id.slice(0, 8);
}

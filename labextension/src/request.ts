/**
 * The server half over REST, typed. Nothing else in this extension builds a URL of it.
 */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type {
  IBackendStatus,
  IErrorBody,
  IForward,
  IImportedPresets,
  IListeningPort,
  ILogLine,
  IMetrics,
  IPresets,
  IQueue,
  IRemoteKernel,
  IRepository,
  ISession,
  ISpecSchema,
  ITask,
  LaunchSpec
} from './tokens';

const API = 'clearml-session/api';

/**
 * Milliseconds after which a call is given up. The server's own deadlines are shorter, but for its first login at
 * ClearML: that may have to import the SDK from a slow disk, for which it takes two minutes. It goes on there without
 * us, and whoever asks again waits for the same one.
 */
const DEADLINE = 60_000;

/** The embedded default has to start its servers and an agent first; a launch is several calls of ClearML in a row. */
const LONG_DEADLINE = 180_000;

/** An upload may take this long before the server gives it up, and then says why. */
const UPLOAD_DEADLINE = 3_660_000;

/** Code of a failure that goes away when the user logs in again. */
export const NOT_LOGGED_IN = 'not_logged_in';

/** A failure as the contract describes it, or one of the way to the server. */
export class SessionError extends Error {
  constructor(
    readonly body: IErrorBody,
    readonly status: number
  ) {
    super(body.message);
    this.name = 'SessionError';
  }

  /** A stable name of the kind of failure. */
  get code(): string {
    return this.body.code;
  }

  /** What the user can do about it. */
  get hint(): string {
    return this.body.hint ?? '';
  }

  /** What happened and what to do about it, in one line. */
  get text(): string {
    return this.hint
      ? `${this.message.replace(/\.$/, '')}. ${this.hint}`
      : this.message;
  }

  /** The launch option or field that was refused, if it was one. */
  get field(): string | undefined {
    return this.body.detail?.field;
  }

  /** What the user has given up: no failure, and nobody is told of it. */
  static cancelled(): SessionError {
    return new SessionError({ code: 'cancelled', message: 'Cancelled' }, 0);
  }

  /** Any thrown value as a SessionError. */
  static from(reason: unknown): SessionError {
    if (reason instanceof SessionError) {
      return reason;
    }
    const message = reason instanceof Error ? reason.message : String(reason);
    return new SessionError({ code: 'client_error', message }, 0);
  }
}

/** What a call needs beside its path. */
export interface IRequest {
  method?: 'GET' | 'POST' | 'PUT' | 'DELETE';
  body?: unknown;
  query?: { [name: string]: string | number | undefined };
  /** Milliseconds. */
  deadline?: number;
  /** A question that whoever asks it repeats where it fails: the user is told so. */
  polled?: boolean;
  /** Gives the call up from outside. */
  signal?: AbortSignal;
}

/**
 * Call the server half and return its JSON.
 *
 * @param path - below `clearml-session/api`; single parts have to be encoded already
 * @throws SessionError
 */
export async function requestAPI<T>(
  path: string,
  request: IRequest = {},
  settings: ServerConnection.ISettings = ServerConnection.makeSettings()
): Promise<T> {
  const query = Object.entries(request.query ?? {})
    .filter((entry): entry is [string, string | number] => entry[1] !== undefined)
    .map(([name, value]) => [name, String(value)]);
  const url =
    URLExt.join(settings.baseUrl, API, path) +
    (query.length > 0 ? `?${new URLSearchParams(query).toString()}` : '');

  const aborter = new AbortController();
  const timer = setTimeout(() => aborter.abort(), request.deadline ?? DEADLINE);
  const abort = () => aborter.abort();
  request.signal?.addEventListener('abort', abort);
  try {
    const response = await ServerConnection.makeRequest(
      url,
      {
        method: request.method ?? 'GET',
        body: request.body === undefined ? undefined : JSON.stringify(request.body),
        signal: aborter.signal
      },
      settings
    );
    return await answer<T>(response);
  } catch (reason) {
    throw failure(reason, aborter.signal.aborted, request);
  } finally {
    clearTimeout(timer);
    request.signal?.removeEventListener('abort', abort);
  }
}

async function answer<T>(response: Response): Promise<T> {
  const text = await response.text();
  let data: unknown = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    // A page of a proxy in between, say; told below by its status.
  }
  if (response.ok && (data !== null || !text)) {
    return data as T;
  }
  throw new SessionError(errorBody(data, response), response.status);
}

function errorBody(data: unknown, response: Response): IErrorBody {
  const { error, message } = (data ?? {}) as {
    error?: IErrorBody;
    message?: unknown;
  };
  // Of its own accord the server half says 401 and 403 of ClearML only; else they are Jupyter's.
  const typed = typeof error?.code === 'string' && !/^http_40[13]$/.test(error.code);
  if (typed) {
    return error;
  }
  const loginPage = response.ok || response.redirected;
  if (loginPage || response.status === 401 || response.status === 403) {
    return {
      code: NOT_LOGGED_IN,
      message: 'The Jupyter server does not let you in',
      hint: 'Your login may have expired: reload the page to log in again.'
    };
  }
  const said = typeof message === 'string' && message ? message : response.statusText;
  if (response.status === 404) {
    return {
      code: 'no_server_half',
      message: 'The Jupyter server has no ClearML session extension',
      hint: 'Check with "jupyter server extension list" that jupyterlab_clearml_session is enabled, and restart.'
    };
  }
  return {
    code: `http_${response.status}`,
    message: said || `The Jupyter server answered ${response.status}`
  };
}

function failure(reason: unknown, aborted: boolean, request: IRequest): SessionError {
  if (reason instanceof SessionError) {
    return reason;
  }
  if (request.signal?.aborted) {
    return SessionError.cancelled();
  }
  // An order is never repeated by itself, and what became of it is not known.
  const next =
    (request.method ?? 'GET') !== 'GET'
      ? 'What you asked for may have been done all the same: look before you try again.'
      : request.polled
        ? 'It is asked again by itself.'
        : 'Try again in a moment.';
  if (aborted) {
    return new SessionError(
      {
        code: 'deadline',
        message: 'The Jupyter server did not answer in time',
        hint: next
      },
      0
    );
  }
  if (reason instanceof ServerConnection.NetworkError) {
    return new SessionError(
      {
        code: 'jupyter_unreachable',
        message: 'The Jupyter server cannot be reached',
        hint: `Is it still running? ${next}`
      },
      0
    );
  }
  return SessionError.from(reason);
}

/** What `POST configure` takes. */
export interface ICredentials {
  api_server: string;
  web_server: string;
  files_server: string;
  access_key: string;
  secret_key: string;
}

/** The calls of the contract. Each one throws SessionError. */
export class SessionAPI {
  constructor(
    readonly settings: ServerConnection.ISettings = ServerConnection.makeSettings()
  ) {}

  /** A path under the base URL as an address that the browser can open. */
  url(path: string): string {
    return URLExt.join(this.settings.baseUrl, path);
  }

  status(): Promise<IBackendStatus> {
    return this._call('status', { polled: true });
  }

  configure(
    credentials: ICredentials | { mode: 'local' },
    signal?: AbortSignal
  ): Promise<IBackendStatus> {
    return this._call('configure', {
      method: 'POST',
      body: credentials,
      deadline: LONG_DEADLINE,
      signal
    });
  }

  async queues(): Promise<IQueue[]> {
    return (await this._call<{ queues: IQueue[] }>('queues')).queues;
  }

  /** @param polled - whether they are asked for again and again */
  sessions(
    state: 'active' | 'ended' | 'all',
    allUsers: boolean,
    polled = true
  ): Promise<{ sessions: ISession[]; revision: number }> {
    const query = { state, all_users: allUsers ? 1 : 0 };
    return this._call('sessions', { query, polled });
  }

  session(id: string): Promise<ISession> {
    return this._call(sessionPath(id));
  }

  launch(spec: LaunchSpec): Promise<ISession> {
    return this._call('sessions', {
      method: 'POST',
      body: spec,
      deadline: 'upload_files' in spec ? UPLOAD_DEADLINE : LONG_DEADLINE
    });
  }

  attach(id: string): Promise<ISession> {
    return this._call(sessionPath(id, 'attach'), { method: 'POST' });
  }

  detach(id: string): Promise<ISession> {
    return this._call(sessionPath(id, 'detach'), { method: 'POST' });
  }

  reconnect(id: string): Promise<ISession> {
    return this._call(sessionPath(id, 'reconnect'), { method: 'POST' });
  }

  shutdown(id: string): Promise<ISession> {
    return this._call(sessionPath(id), { method: 'DELETE' });
  }

  /** Delete an ended session's Task from ClearML. */
  purge(id: string): Promise<ISession> {
    return this._call(sessionPath(id), { method: 'DELETE', query: { purge: 1 } });
  }

  async log(id: string, limit: number, before?: string): Promise<ILogLine[]> {
    const path = sessionPath(id, 'log');
    return (await this._call<{ lines: ILogLine[] }>(path, { query: { limit, before } }))
      .lines;
  }

  /** How busy the machine of an attached session is. */
  metrics(id: string, signal?: AbortSignal): Promise<IMetrics> {
    return this._call(sessionPath(id, 'metrics'), { signal });
  }

  async kernels(id: string): Promise<IRemoteKernel[]> {
    const path = sessionPath(id, 'kernels');
    return (await this._call<{ kernels: IRemoteKernel[] }>(path)).kernels;
  }

  killKernel(id: string, kernelId: string): Promise<void> {
    return this._call(sessionPath(id, 'kernels', kernelId), { method: 'DELETE' });
  }

  /** Make a kernel that lives there one of this server's own; returns its local id. */
  async adoptKernel(id: string, kernelId: string): Promise<string> {
    const path = sessionPath(id, 'kernels', kernelId, 'adopt');
    return (await this._call<{ id: string }>(path, { method: 'POST' })).id;
  }

  /** Tasks whose name or id holds the text. */
  async tasks(text: string, signal?: AbortSignal): Promise<ITask[]> {
    const request = { query: { text }, signal };
    return (await this._call<{ tasks: ITask[] }>('tasks', request)).tasks;
  }

  /** What something listens on over there. */
  async ports(id: string): Promise<IListeningPort[]> {
    const path = sessionPath(id, 'ports');
    return (await this._call<{ ports: IListeningPort[] }>(path)).ports;
  }

  async forwards(id: string): Promise<IForward[]> {
    const path = sessionPath(id, 'forwards');
    return (await this._call<{ forwards: IForward[] }>(path)).forwards;
  }

  /** Open a local port: any free one, where none is named. */
  forward(
    id: string,
    remotePort: number | 'ssh',
    options: { localPort?: number; showPassword?: boolean } = {}
  ): Promise<IForward> {
    return this._call(sessionPath(id, 'forwards'), {
      method: 'POST',
      body: {
        remote_port: remotePort,
        local_port: options.localPort, // left out of the JSON where undefined
        show_password: options.showPassword
      }
    });
  }

  closeForward(id: string, localPort: number): Promise<void> {
    return this._call(sessionPath(id, 'forwards', String(localPort)), {
      method: 'DELETE'
    });
  }

  /** What a session was launched with, long texts included; never its password. */
  spec(id: string): Promise<LaunchSpec> {
    return this._call(sessionPath(id, 'spec'));
  }

  /** What could be cloned of the git repository around a folder of this server; sends nothing. */
  repository(folder: string, signal?: AbortSignal): Promise<IRepository> {
    return this._call('repo', { query: { folder }, signal });
  }

  storeWorkspace(id: string): Promise<void> {
    return this._call(sessionPath(id, 'workspace'), {
      method: 'POST',
      deadline: UPLOAD_DEADLINE
    });
  }

  presets(): Promise<IPresets> {
    return this._call('presets');
  }

  savePreset(name: string, spec: LaunchSpec): Promise<IPresets> {
    return this._call(URLExt.join('presets', encodeURIComponent(name)), {
      method: 'PUT',
      body: spec
    });
  }

  deletePreset(name: string): Promise<IPresets> {
    return this._call(URLExt.join('presets', encodeURIComponent(name)), {
      method: 'DELETE'
    });
  }

  /** Take what the command line remembered as a preset. */
  importPresets(): Promise<IImportedPresets> {
    return this._call('import-presets', { method: 'POST' });
  }

  schema(): Promise<ISpecSchema> {
    return this._call('schema');
  }

  private _call<T>(path: string, request?: IRequest): Promise<T> {
    return requestAPI<T>(path, request, this.settings);
  }
}

function sessionPath(...parts: string[]): string {
  return URLExt.join('sessions', ...parts.map(encodeURIComponent));
}

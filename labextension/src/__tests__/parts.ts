/** What several tests need: sessions, an API that answers from memory, an event stream. */
import type { Event } from '@jupyterlab/services';
import { Stream } from '@lumino/signaling';
import { nullTranslator } from '@jupyterlab/translation';

import { SessionModel } from '../model';
import type { SessionAPI } from '../request';
import type { IBackendStatus, ISession, ISpecSchema, Phase } from '../tokens';
import { EVENT_SCHEMA_ID } from '../tokens';

export const trans = nullTranslator.load('jupyterlab_clearml_session');

export function id(number: number): string {
  return number.toString(16).padStart(32, '0');
}

export function session(
  number: number,
  phase: Phase,
  changes: Partial<ISession> = {}
): ISession {
  const status: { [phase: string]: string } = {
    created: 'created',
    queued: 'queued',
    ended: 'completed',
    failed: 'failed'
  };
  return {
    id: id(number),
    name: `session ${number}`,
    phase,
    phase_text: `text of ${phase}`,
    phase_since: '2026-11-22T10:00:00Z',
    status: status[phase] ?? 'in_progress',
    queue: { id: 'q', name: 'default' },
    project: 'DevOps',
    tags: [],
    comment: '',
    user: { id: 'u1', name: 'ada' },
    mine: true,
    created: `2026-11-22T10:00:${String(number).padStart(2, '0')}Z`,
    started: null,
    ended: null,
    web_url: null,
    parent: null,
    launched_by: 'panel',
    attached: phase === 'ready' || phase === 'reconnecting',
    tunnel: {
      state: phase === 'ready' ? 'up' : 'down',
      since: null,
      attempt: 0,
      rtt_ms: null,
      host_key: 'pinned'
    },
    endpoints: phase === 'ready' ? { jupyter: 'p/jupyter/', vscode: 'p/vscode/' } : {},
    kernelspecs: [],
    spec: {},
    progress: null,
    ...changes
  };
}

export const SERVER: IBackendStatus = {
  mode: 'server',
  api_server: 'https://api.example.org',
  web_server: null,
  user: { id: 'u1', name: 'ada' },
  reachable: true,
  version: '2.31'
};

export const SCHEMA: ISpecSchema = {
  type: 'object',
  'x-groups': ['basic', 'advanced'],
  properties: {
    queue: { type: 'string', title: 'Queue', default: '', 'x-group': 'basic' },
    name: {
      type: 'string',
      title: 'Name',
      minLength: 3,
      maxLength: 10,
      'x-group': 'basic'
    },
    packages: {
      type: 'array',
      title: 'Packages',
      items: { type: 'string' },
      default: [],
      'x-group': 'basic'
    },
    jupyter_lab: {
      type: 'boolean',
      title: 'JupyterLab',
      default: true,
      'x-group': 'advanced'
    },
    env: {
      type: 'object',
      title: 'Variables',
      additionalProperties: { type: 'string' },
      default: {} as { [name: string]: string },
      'x-group': 'advanced'
    },
    debugging_session: {
      type: 'string',
      title: 'Debug a Task',
      pattern: '^([0-9a-f]{32})?$',
      default: '',
      'x-group': 'advanced'
    },
    password: {
      type: 'string',
      title: 'Password',
      writeOnly: true,
      'x-group': 'advanced'
    },
    clone_repo: {
      type: 'object',
      title: 'Clone repository',
      properties: { url: { type: 'string' }, diff: { type: 'string' } },
      'x-group': 'advanced'
    },
    idle_timeout_min: {
      type: 'number',
      title: 'Idle',
      minimum: 0,
      default: 0,
      'x-group': 'advanced'
    }
  }
};

/** An API whose calls are jest mocks; those that are not given reject. */
export type FakeAPI = { -readonly [K in keyof SessionAPI]: jest.Mock };

export function fakeAPI(calls: Partial<FakeAPI> = {}): FakeAPI & SessionAPI {
  const known: Partial<FakeAPI> = {
    url: jest.fn((path: string) => `http://localhost/${path}`),
    status: jest.fn().mockResolvedValue(SERVER),
    sessions: jest.fn().mockResolvedValue({ sessions: [], revision: 0 }),
    schema: jest.fn().mockResolvedValue(SCHEMA),
    queues: jest.fn().mockResolvedValue([]),
    presets: jest.fn().mockResolvedValue({ presets: {}, last: null }),
    ...calls
  };
  return new Proxy(known, {
    get: (target, name: keyof FakeAPI) =>
      target[name] ??
      (target[name] = jest
        .fn()
        .mockRejectedValue(new Error(`${name} was not expected`)))
  }) as FakeAPI & SessionAPI;
}

/** An event stream that a test speaks into. */
export class Events {
  readonly stream: Event.Stream = new Stream<Event.IManager, Event.Emission>(
    this as unknown as Event.IManager
  );

  emit(event: { [name: string]: unknown }, schema = EVENT_SCHEMA_ID): void {
    (this.stream as Stream<Event.IManager, Event.Emission>).emit({
      schema_id: schema,
      ...event
    } as Event.Emission);
  }

  changed(revision: number, changed: ISession): void {
    this.emit({ revision, kind: 'changed', session: changed });
  }
}

/** Let everything run that waits for nothing but promises. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) {
    await Promise.resolve();
  }
  await new Promise(resolve => setTimeout(resolve, 0));
  await new Promise(resolve => requestAnimationFrame(() => resolve(null)));
  for (let turn = 0; turn < 20; turn++) {
    await Promise.resolve();
  }
}

/** Wait until the document has what `find` looks for, and return it: when React renders is its own affair. */
export async function until<T>(find: () => T | null | undefined | false): Promise<T> {
  for (;;) {
    const found = find();
    if (found) {
      return found;
    }
    await new Promise<void>(resolve => {
      const observer = new MutationObserver(() => {
        observer.disconnect();
        resolve();
      });
      observer.observe(document, { subtree: true, childList: true, attributes: true });
    });
  }
}

/** A started model, after its first look. */
export async function startedModel(
  api: FakeAPI & SessionAPI,
  events: Events = new Events()
): Promise<SessionModel> {
  const model = new SessionModel({ api, events: events.stream });
  model.start();
  await model.ready;
  await settle();
  return model;
}

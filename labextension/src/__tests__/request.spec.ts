import { ServerConnection } from '@jupyterlab/services';

import { NOT_LOGGED_IN, SessionAPI, SessionError, requestAPI } from '../request';
import { id } from './parts';

/** A request that keeps what it was made of: Node's own refuses the abort signals of jsdom. */
class PlainRequest {
  constructor(
    readonly url: string,
    init: RequestInit
  ) {
    this.method = init.method ?? 'GET';
    this.signal = init.signal as AbortSignal;
    this.body = init.body as string | undefined;
  }

  readonly method: string;
  readonly signal: AbortSignal;
  readonly body: string | undefined;
  readonly headers = new Headers();
}

function settingsThatAnswer(
  answer: (request: PlainRequest) => Response | Promise<Response>
): { settings: ServerConnection.ISettings; fetch: jest.Mock } {
  const fetch = jest.fn(async (request: PlainRequest) => answer(request));
  const settings = ServerConnection.makeSettings({
    baseUrl: 'http://localhost/user/ada/',
    token: '',
    fetch: fetch as unknown as typeof globalThis.fetch,
    Request: PlainRequest as unknown as typeof Request,
    init: { cache: 'default' }
  });
  return { settings, fetch };
}

/** The answer to a request that somebody has to give up. */
function thatNeverAnswers({ signal }: PlainRequest): Promise<Response> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () =>
      reject(new TypeError('The operation was aborted'))
    );
  });
}

function json(body: unknown, status = 200): Response {
  return new Response(JSON.stringify(body), { status });
}

async function failure(promise: Promise<unknown>): Promise<SessionError> {
  return promise.then(
    () => {
      throw new Error('it did not fail');
    },
    (reason: unknown) => {
      expect(reason).toBeInstanceOf(SessionError);
      return reason as SessionError;
    }
  );
}

describe('requestAPI', () => {
  it('calls below the base URL and returns the JSON', async () => {
    const { settings, fetch } = settingsThatAnswer(() => json({ mode: 'local' }));
    await expect(requestAPI('status', {}, settings)).resolves.toEqual({
      mode: 'local'
    });
    const request = fetch.mock.calls[0][0] as PlainRequest;
    expect(request.url).toBe('http://localhost/user/ada/clearml-session/api/status');
    expect(request.method).toBe('GET');
  });

  it('turns the error body of the contract into a SessionError', async () => {
    const { settings } = settingsThatAnswer(() =>
      json(
        {
          error: {
            code: 'invalid_input',
            message: 'No such queue',
            hint: 'Pick one',
            detail: { field: 'queue' }
          }
        },
        400
      )
    );
    const error = await failure(requestAPI('sessions', { method: 'POST' }, settings));
    expect(error.status).toBe(400);
    expect(error.code).toBe('invalid_input');
    expect(error.message).toBe('No such queue');
    expect(error.hint).toBe('Pick one');
    expect(error.field).toBe('queue');
  });

  it("takes Jupyter's own message where there is no error body", async () => {
    const { settings } = settingsThatAnswer(() => json({ message: 'Too much' }, 413));
    const error = await failure(requestAPI('status', {}, settings));
    expect(error.code).toBe('http_413');
    expect(error.text).toBe('Too much');
  });

  it.each([
    ["Jupyter's own refusal", () => json({ message: 'Forbidden' }, 403)],
    [
      'the same as the server half words it',
      () => json({ error: { code: 'http_403', message: 'Forbidden' } }, 403)
    ],
    ['a page for an answer', () => new Response('<html>Log in</html>')]
  ])('takes %s for a login that has expired', async (_, answer) => {
    const { settings } = settingsThatAnswer(answer);
    const error = await failure(requestAPI('status', {}, settings));
    expect(error.code).toBe(NOT_LOGGED_IN);
    expect(error.hint).toContain('log in again');
  });

  it('leaves what ClearML forbids as it is', async () => {
    const refused = { error: { code: 'forbidden', message: 'Not your project' } };
    const { settings } = settingsThatAnswer(() => json(refused, 403));
    const error = await failure(requestAPI('sessions', {}, settings));
    expect(error.text).toBe('Not your project');
  });

  it('says that the server half is missing', async () => {
    const { settings } = settingsThatAnswer(
      () => new Response('<html>404</html>', { status: 404 })
    );
    const error = await failure(requestAPI('status', {}, settings));
    expect(error.code).toBe('no_server_half');
    expect(error.hint).toContain('jupyter server extension list');
  });

  it('accepts an empty answer', async () => {
    const { settings } = settingsThatAnswer(() => new Response(null, { status: 204 }));
    await expect(requestAPI('x', { method: 'DELETE' }, settings)).resolves.toBeNull();
  });

  it('gives up after its deadline', async () => {
    const { settings } = settingsThatAnswer(thatNeverAnswers);
    const error = await failure(requestAPI('status', { deadline: 20 }, settings));
    expect(error.code).toBe('deadline');
  });

  it.each([
    ['GET', 'Try again in a moment'],
    ['POST', 'look before you try again'],
    ['PUT', 'look before you try again'],
    ['DELETE', 'look before you try again']
  ] as const)(
    'says what becomes of a %s that was not answered',
    async (method, hint) => {
      const silent = settingsThatAnswer(thatNeverAnswers);
      const late = requestAPI('x', { method, deadline: 20 }, silent.settings);
      expect((await failure(late)).hint).toContain(hint);
      const away = settingsThatAnswer(() => {
        throw new TypeError('Failed to fetch');
      });
      const lost = requestAPI('x', { method }, away.settings);
      expect((await failure(lost)).hint).toContain(hint);
    }
  );

  it('tells cancelling from failing', async () => {
    const { settings } = settingsThatAnswer(thatNeverAnswers);
    const aborter = new AbortController();
    const call = requestAPI('status', { signal: aborter.signal }, settings);
    aborter.abort();
    expect((await failure(call)).code).toBe('cancelled');
  });

  it('tells that the Jupyter server is away', async () => {
    const { settings } = settingsThatAnswer(() => {
      throw new TypeError('Failed to fetch');
    });
    expect((await failure(requestAPI('status', {}, settings))).code).toBe(
      'jupyter_unreachable'
    );
  });
});

describe('SessionAPI', () => {
  const calls: Array<[string, (api: SessionAPI) => Promise<unknown>, string, string]> =
    [
      [
        'sessions',
        api => api.sessions('all', true),
        'GET',
        'sessions?state=all&all_users=1'
      ],
      ['attach', api => api.attach(id(1)), 'POST', `sessions/${id(1)}/attach`],
      ['shutdown', api => api.shutdown(id(1)), 'DELETE', `sessions/${id(1)}`],
      ['purge', api => api.purge(id(1)), 'DELETE', `sessions/${id(1)}?purge=1`],
      ['log', api => api.log(id(1), 5), 'GET', `sessions/${id(1)}/log?limit=5`],
      [
        'a name with a slash',
        api => api.deletePreset('a/b c'),
        'DELETE',
        'presets/a%2Fb%20c'
      ]
    ];
  it.each(calls)('%s', async (_, call, method, path) => {
    const { settings, fetch } = settingsThatAnswer(() => json({ lines: [] }));
    await call(new SessionAPI(settings));
    const request = fetch.mock.calls[0][0] as PlainRequest;
    expect(request.method).toBe(method);
    expect(request.url).toBe(`http://localhost/user/ada/clearml-session/api/${path}`);
  });

  it.each([
    ['status', api => api.status(), 'asked again by itself'],
    ['sessions', api => api.sessions('active', false), 'asked again by itself'],
    [
      'sessions to clean up',
      api => api.sessions('ended', false, false),
      'Try again in a moment'
    ],
    ['queues', api => api.queues(), 'Try again in a moment'],
    ['kernels', api => api.kernels(id(1)), 'Try again in a moment']
  ] as Array<[string, (api: SessionAPI) => Promise<unknown>, string]>)(
    'says whether it asks for %s again',
    async (_, call, hint) => {
      const { settings } = settingsThatAnswer(() => {
        throw new TypeError('Failed to fetch');
      });
      expect((await failure(call(new SessionAPI(settings)))).hint).toContain(hint);
    }
  );

  it('sends the spec as it is', async () => {
    const { settings, fetch } = settingsThatAnswer(() => json({}, 202));
    await new SessionAPI(settings).launch({ queue: 'gpu', packages: ['torch'] });
    const request = fetch.mock.calls[0][0] as PlainRequest;
    expect(JSON.parse(request.body ?? '')).toEqual({
      queue: 'gpu',
      packages: ['torch']
    });
  });

  it('waits for a workspace as long as the server uploads it', async () => {
    jest.useFakeTimers();
    try {
      const { settings } = settingsThatAnswer(thatNeverAnswers);
      const given = jest.fn();
      const stored = failure(new SessionAPI(settings).storeWorkspace(id(1)));
      void stored.then(given);
      await jest.advanceTimersByTimeAsync(3_600_000);
      expect(given).not.toHaveBeenCalled();
      await jest.advanceTimersByTimeAsync(60_000);
      expect((await stored).code).toBe('deadline');
    } finally {
      jest.useRealTimers();
    }
  });

  it('makes addresses below the base URL', () => {
    const { settings } = settingsThatAnswer(() => json({}));
    expect(new SessionAPI(settings).url('clearml-session/proxy/x/jupyter/lab')).toBe(
      'http://localhost/user/ada/clearml-session/proxy/x/jupyter/lab'
    );
  });
});

import { PageConfig } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { nullTranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import { RemoteServices } from '../remote';
import { fakeAPI, id, session, startedModel } from './parts';

// The real one draws on a canvas, which jsdom does not have.
jest.mock('@jupyterlab/terminal', () => ({
  Terminal: class extends Widget {
    constructor(readonly session: unknown) {
      super();
    }
  }
}));

const READY = session(1, 'ready');
const TERMINALS = `http://localhost/clearml-session/proxy/${id(1)}/jupyter/api/terminals`;

/** A socket that is never connected. */
class Socket {
  readonly close = jest.fn();
}

describe('the terminals of a session', () => {
  const answer = jest.fn<Response, [method: string, url: string]>();
  let remote: RemoteServices;

  beforeEach(async () => {
    PageConfig.setOption('terminalsAvailable', 'false'); // of the local server
    const { makeSettings } = ServerConnection;
    jest.spyOn(ServerConnection, 'makeSettings').mockImplementation(options =>
      makeSettings({
        ...options,
        WebSocket: Socket as unknown as typeof globalThis.WebSocket
      })
    );
    answer.mockReset();
    jest
      .spyOn(ServerConnection, 'makeRequest')
      .mockImplementation(async (url, { method = 'GET' }) => answer(method, url));
    remote = new RemoteServices({
      model: await startedModel(fakeAPI()),
      contents: {} as never,
      factory: null,
      terminalOptions: async () => ({}),
      translator: nullTranslator
    });
    jest.useFakeTimers();
  });

  afterEach(() => {
    remote.end(READY);
    jest.useRealTimers();
    jest.restoreAllMocks();
  });

  /** Open a terminal; what polls for it needs the clock. */
  async function opened(name?: string) {
    const terminal = remote.createTerminal(READY, name);
    terminal.catch(() => undefined);
    await jest.advanceTimersByTimeAsync(100);
    return terminal;
  }

  it('are there where the local server has none', async () => {
    answer.mockImplementation((method: string) =>
      Response.json(method === 'POST' ? { name: '3' } : [{ name: '2' }, { name: '3' }])
    );
    expect((await opened()).session.name).toBe('3');
    expect(answer).toHaveBeenCalledWith('POST', TERMINALS);
    answer.mockClear();
    expect((await opened('2')).session.name).toBe('2');
    expect(answer).not.toHaveBeenCalledWith('POST', TERMINALS);
  });

  it('are asked for as long as one is open', async () => {
    answer.mockImplementation((method: string) =>
      Response.json(method === 'POST' ? { name: '1' } : [{ name: '1' }])
    );
    const terminal = await opened();
    answer.mockClear();
    await jest.advanceTimersByTimeAsync(60_000);
    expect(answer).toHaveBeenCalled();
    terminal.dispose();
    answer.mockClear();
    await jest.advanceTimersByTimeAsync(60_000);
    expect(answer).not.toHaveBeenCalled();
  });

  it('are not asked for any more where none could be started', async () => {
    answer.mockImplementation((method: string) =>
      method === 'POST'
        ? Response.json({ message: 'Out of terminals' }, { status: 500 })
        : Response.json([])
    );
    await expect(opened()).rejects.toBeInstanceOf(ServerConnection.ResponseError);
    answer.mockClear();
    await jest.advanceTimersByTimeAsync(60_000);
    expect(answer).not.toHaveBeenCalled();
  });
});

import type { ISessionContext } from '@jupyterlab/apputils';
import { KernelMessage, ServerConnection } from '@jupyterlab/services';
import { KernelConnection } from '@jupyterlab/services/lib/kernel/default';
import { Signal } from '@lumino/signaling';

import { showOnce } from '../once';
import { settle } from './parts';

/** The websockets that were opened, the newest last; what they are sent goes nowhere. */
class Socket {
  static readonly all: Socket[] = [];
  readonly protocol = '';
  onopen: ((event: unknown) => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: unknown) => void) | null = null;
  onerror: ((event: unknown) => void) | null = null;

  constructor() {
    Socket.all.push(this);
  }

  send(): void {
    return;
  }

  close(): void {
    return;
  }
}

const kernels: KernelConnection[] = [];

async function stage() {
  const serverSettings = ServerConnection.makeSettings({
    WebSocket: Socket as unknown as typeof WebSocket,
    // Asked whether the kernel still lives, the server says yes.
    fetch: () => Promise.resolve(new Response('{"id": "k", "name": "clearml-0-n"}'))
  });
  const kernel = new KernelConnection({
    model: { id: 'k', name: 'clearml-0-n' },
    serverSettings
  });
  kernels.push(kernel);
  const context = {
    session: { kernel },
    kernelChanged: new Signal<unknown, unknown>({})
  };
  showOnce(context as unknown as ISessionContext);
  Socket.all.at(-1)?.onopen?.({});
  await settle();
  return { kernel };
}

/** The kernel says something in a cell. */
async function say(future: { msg: KernelMessage.IMessage }, id: string): Promise<void> {
  const message = KernelMessage.createMessage<KernelMessage.IStreamMsg>({
    channel: 'iopub',
    msgType: 'stream',
    session: 'kernel',
    msgId: id,
    parentHeader: future.msg.header as KernelMessage.IHeader<'execute_request'>,
    content: { name: 'stdout', text: id }
  });
  Socket.all.at(-1)?.onmessage?.({ data: JSON.stringify(message) });
  await settle();
}

async function reconnect(kernel: KernelConnection): Promise<void> {
  void kernel.reconnect();
  await settle();
  Socket.all.at(-1)?.onopen?.({});
  await settle();
}

beforeEach(() => {
  jest.spyOn(console, 'debug').mockReturnValue();
  jest.spyOn(console, 'warn').mockReturnValue();
});

afterEach(() => {
  jest.restoreAllMocks();
  kernels.splice(0).forEach(kernel => kernel.dispose());
});

describe('showOnce', () => {
  it('passes over what comes again after the connection was made anew', async () => {
    const { kernel } = await stage();
    const future = kernel.requestExecute({ code: 'print' });
    const shown: string[] = [];
    future.onIOPub = message => {
      if (KernelMessage.isStreamMsg(message)) {
        shown.push(message.content.text);
      }
    };
    await say(future, 'a');
    await say(future, 'b');
    await reconnect(kernel);
    await say(future, 'b');
    await say(future, 'c');
    expect(shown).toEqual(['a', 'b', 'c']);
  });

  it('does so before the hook of an output widget', async () => {
    const { kernel } = await stage();
    const future = kernel.requestExecute({ code: 'print' });
    const captured: string[] = [];
    future.registerMessageHook(message => {
      captured.push(message.header.msg_id);
      return false;
    });
    await say(future, 'a');
    await reconnect(kernel);
    await say(future, 'a');
    await say(future, 'b');
    expect(captured).toEqual(['a', 'b']);
  });
});

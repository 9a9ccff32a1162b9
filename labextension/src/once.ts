/**
 * A message of a kernel is shown once. After the Jupyter server was killed, the next one sends what it cannot know to have
 * arrived: the last message, or a few, may come again (docs/reliability.md).
 */
import type { ISessionContext } from '@jupyterlab/apputils';
import type { Kernel, KernelMessage } from '@jupyterlab/services';

/** More messages, or cells, than can come again. */
const REMEMBERED = 5000;

/** Watches the kernels of a notebook or a console, one after the other; ends with it. */
export function showOnce(context: ISessionContext): void {
  const follow = (kernel: Kernel.IKernelConnection | null | undefined): void => {
    if (kernel?.name.startsWith('clearml-')) {
      watch(kernel);
    }
  };
  follow(context.session?.kernel);
  context.kernelChanged.connect((_, change) => follow(change.newValue));
}

const watched = new WeakSet<Kernel.IKernelConnection>();

function watch(kernel: Kernel.IKernelConnection): void {
  if (watched.has(kernel)) {
    return;
  }
  watched.add(kernel);
  const running = new Set<string>(); // or done: a hook for those is ignored
  const seen = new Set<string>();
  const again = new WeakSet<KernelMessage.IMessage>();
  const hook = (message: KernelMessage.IIOPubMessage): boolean => !again.has(message);

  kernel.anyMessage.connect((_, { msg, direction }) => {
    const id = msg.header.msg_id;
    if (direction === 'send') {
      if (msg.header.msg_type === 'execute_request') {
        remember(running, id);
      }
    } else if (msg.channel === 'iopub') {
      if (seen.has(id)) {
        again.add(msg);
      } else {
        remember(seen, id);
      }
    }
  });
  kernel.connectionStatusChanged.connect((_, status) => {
    if (status === 'connected') {
      // Only now: of the hooks of a cell the last one comes first, and an output widget has its own.
      running.forEach(id => kernel.registerMessageHook(id, hook));
    }
  });
}

function remember(ids: Set<string>, id: string): void {
  ids.add(id);
  if (ids.size > REMEMBERED) {
    ids.delete(ids.values().next().value as string);
  }
}

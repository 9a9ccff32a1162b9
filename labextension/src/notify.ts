/** Tells failures. */
import { Notification } from '@jupyterlab/apputils';

import { SessionError } from './request';

/** Tell a failure in a notification. That the user cancelled something is none. */
export function notifyError(reason: unknown): void {
  const error = SessionError.from(reason);
  if (error.code === 'cancelled') {
    return;
  }
  Notification.error(error.text, { autoClose: 10_000 });
}

/** Run, and tell a failure instead of throwing it at whoever pressed a button. */
export async function tell<T>(run: () => Promise<T>): Promise<T | null> {
  try {
    return await run();
  } catch (reason) {
    notifyError(reason);
    return null;
  }
}

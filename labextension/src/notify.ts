/** Tells failures. */
import { Notification } from '@jupyterlab/apputils';

import { SessionError } from './request';

/** Tell a failure in a notification. That the user cancelled something is none. */
export function notifyError(reason: unknown): void {
  const error = SessionError.from(reason);
  if (error.code === 'cancelled') {
    return;
  }
  const text = error.hint ? `${error.message}. ${error.hint}` : error.message;
  Notification.error(text, { autoClose: 10_000 });
}

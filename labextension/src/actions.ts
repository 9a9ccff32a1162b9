/**
 * What can be done with a session, decided from its state alone. The server checks it again; here it only
 * decides which buttons there are.
 */
import type { ISession } from './tokens';

/** Everything a user can do with one session. */
export type Action =
  | 'jupyter'
  | 'vscode'
  | 'terminal'
  | 'files'
  | 'port'
  | 'ssh'
  | 'forwards'
  | 'kernels'
  | 'attach'
  | 'detach'
  | 'reconnect'
  | 'log'
  | 'store'
  | 'shutdown'
  | 'again'
  | 'continue'
  | 'delete'
  | 'dismiss'
  | 'web';

const LIVE = new Set(['created', 'queued', 'in_progress']);

/** True while the session holds an agent, or waits for one. */
export function isLive(session: ISession): boolean {
  return LIVE.has(session.status);
}

/** True where pages of the session answer, or will as soon as the connection is back. */
export function isReachable(session: ISession): boolean {
  const { phase, attached, kernelspecs } = session;
  // Its kernels are known: it has been ready before, and is connected anew.
  const again = phase === 'connecting' && kernelspecs.length > 0;
  return phase === 'ready' || (attached && (phase === 'reconnecting' || again));
}

/** Whether an action makes sense for a session as it is now. */
export function can(session: ISession, action: Action): boolean {
  switch (action) {
    case 'jupyter':
      return opens(session) && Boolean(session.endpoints.jupyter);
    case 'vscode':
      return opens(session) && Boolean(session.endpoints.vscode);
    case 'terminal':
    case 'files':
      return isReachable(session) && Boolean(session.endpoints.jupyter);
    case 'port':
    case 'ssh':
    case 'forwards':
    case 'kernels':
      return isReachable(session);
    case 'attach':
      return session.phase === 'services_up';
    case 'detach':
      return session.attached && isLive(session) && session.phase !== 'stopping';
    case 'reconnect':
      return (
        session.attached &&
        ['ready', 'connecting', 'reconnecting', 'failed'].includes(session.phase)
      );
    case 'log':
      return session.phase !== 'created' && session.phase !== 'queued';
    case 'store':
      return session.phase === 'ready' && Boolean(session.spec.store_workspace);
    case 'shutdown':
      return isLive(session) && session.phase !== 'stopping';
    case 'again':
    case 'delete':
      return !isLive(session);
    case 'continue':
      return !isLive(session) && Boolean(session.spec.store_workspace);
    case 'dismiss':
      return !isLive(session) && session.phase === 'failed';
    case 'web':
      return Boolean(session.web_url);
  }
}

/** A running session that is not attached is attached on the way. */
function opens(session: ISession): boolean {
  return isReachable(session) || session.phase === 'services_up';
}

const TASK_ID = /[0-9a-f]{32}/;

/** Find the id of a Task in what somebody pasted: the id itself, or an address of ClearML's web pages. */
export function findTaskId(text: string): string | null {
  const trimmed = text.trim().toLowerCase();
  if (new RegExp(`^${TASK_ID.source}$`).test(trimmed)) {
    return trimmed;
  }
  const found = /(?:experiments|tasks)\/([0-9a-f]{32})(?![0-9a-f])/.exec(trimmed);
  return found ? found[1] : null;
}

/** Words for phases, times and machines. Pure. */
import type { TranslationBundle } from '@jupyterlab/translation';

import type { IQueue, ISession, ITunnel, Phase } from './tokens';
import { IMPORTED_PRESET } from './tokens';

/** The short name of a phase, for the chip. */
export function phaseName(phase: Phase, trans: TranslationBundle): string {
  switch (phase) {
    case 'created':
      return trans.__('Created');
    case 'queued':
      return trans.__('Queued');
    case 'starting':
      return trans.__('Starting');
    case 'services_up':
      return trans.__('Running');
    case 'connecting':
      return trans.__('Connecting');
    case 'ready':
      return trans.__('Ready');
    case 'reconnecting':
      return trans.__('Reconnecting');
    case 'stopping':
      return trans.__('Stopping');
    case 'ended':
      return trans.__('Ended');
    case 'failed':
      return trans.__('Failed');
  }
}

/** How a phase looks: one of four kinds. */
export function phaseKind(phase: Phase): 'busy' | 'good' | 'bad' | 'quiet' {
  switch (phase) {
    case 'ready':
      return 'good';
    case 'failed':
      return 'bad';
    case 'ended':
    case 'services_up':
    case 'created':
      return 'quiet';
    default:
      return 'busy';
  }
}

/** How far the machine of a session is trusted, and why. */
export function hostKeyWords(
  trust: ITunnel['host_key'],
  trans: TranslationBundle
): [string, string] {
  switch (trust) {
    case 'pinned':
      return [
        trans.__('verified'),
        trans.__('Made for this session alone, and checked on every connection.')
      ];
    case 'vault':
      return [
        trans.__('from the vault'),
        trans.__(
          'The key that the ClearML vault names for its machines, checked on every connection.'
        )
      ];
    case 'unverified':
      return [
        trans.__('not verified'),
        trans.__(
          'This session uses the default keys of clearml-session, which everybody knows: they prove nothing about the machine. Sessions launched from here have keys of their own.'
        )
      ];
  }
}

/** A time that lies behind us, in words; `now` is in milliseconds. */
export function ago(time: string, trans: TranslationBundle, now = Date.now()): string {
  const seconds = Math.max(0, Math.round((now - parseTime(time)) / 1000));
  if (Number.isNaN(seconds)) {
    return time;
  }
  return seconds < 60
    ? trans.__('just now')
    : trans.__('%1 ago', lasting(seconds, trans));
}

/** A time span of a minute or more in words, as exact as people say it. */
export function lasting(seconds: number, trans: TranslationBundle): string {
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) {
    return trans._n('%1 minute', '%1 minutes', minutes);
  }
  const hours = Math.round(minutes / 60);
  if (hours < 48) {
    return trans._n('%1 hour', '%1 hours', hours);
  }
  return trans._n('%1 day', '%1 days', Math.round(hours / 24));
}

/** ClearML leaves the zone out where it means UTC. */
function parseTime(time: string): number {
  return Date.parse(/(Z|[+-]\d\d:?\d\d)$/.test(time) ? time : `${time}Z`);
}

/** A queue with what waits in it and who serves it. */
export function queueText(queue: IQueue, trans: TranslationBundle): string {
  const idle = queue.workers.filter(worker => !worker.busy).length;
  const agents =
    queue.workers.length === 0
      ? trans.__('no agent')
      : idle > 0
        ? trans._n('%1 agent idle', '%1 agents idle', idle)
        : trans._n('%1 agent, busy', '%1 agents, busy', queue.workers.length);
  return queue.length === 0
    ? `${queue.name} — ${agents}`
    : `${queue.name} — ${agents}, ${trans.__('%1 waiting', queue.length)}`;
}

/** What came of an import of the command line's options. */
export function importedText(
  refused: ReadonlyArray<string>,
  trans: TranslationBundle
): string {
  const done = trans.__(
    'Imported as preset “%1”; its password was not.',
    IMPORTED_PRESET
  );
  return refused.length === 0
    ? done
    : `${done} ${trans.__('Not understood: %1.', refused.join(', '))}`;
}

/** Whether a session is meant by what was typed into the filter box. */
export function matches(session: ISession, filter: string): boolean {
  const text = [
    session.name,
    session.id,
    session.phase,
    session.project,
    session.queue?.name ?? '',
    session.user?.name ?? '',
    ...session.tags
  ]
    .join(' ')
    .toLowerCase();
  return filter
    .toLowerCase()
    .split(/\s+/)
    .every(word => text.includes(word));
}

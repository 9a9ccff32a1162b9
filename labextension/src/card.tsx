/** One session in the list. */
import type { TranslationBundle } from '@jupyterlab/translation';
import { ellipsesIcon, LabIcon, MenuSvg } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import type { Menu } from '@lumino/widgets';
import * as React from 'react';

import { can, isLive, isReachable } from './actions';
import { CommandIDs } from './commandIds';
import { CopyButton } from './dialog';
import { Load } from './load';
import { fraction } from './progress';
import { ProgressBar } from './progressBar';
import type { SessionAPI } from './request';
import type { IErrorBody, ISession, ITunnel, Phase } from './tokens';
import { shortId } from './tokens';
import { ago, hostKeyWords, phaseKind, phaseName } from './text';

/** Commands behind the "more" button, in groups. */
const MENU: ReadonlyArray<ReadonlyArray<string>> = [
  [CommandIDs.openJupyterBrowser, CommandIDs.openVscodeBrowser],
  [CommandIDs.openPort, CommandIDs.ssh, CommandIDs.forwards, CommandIDs.kernels],
  [CommandIDs.log, CommandIDs.storeWorkspace],
  [CommandIDs.reconnect, CommandIDs.detach],
  [CommandIDs.copyId, CommandIDs.openWeb]
];

/** Phases in which the log is what people look for; in the others it is in the menu. */
const WITH_LOG = new Set<Phase>([
  'starting',
  'connecting',
  'stopping',
  'failed',
  'ended'
]);

interface ICardProps {
  api: SessionAPI;
  session: ISession;
  commands: CommandRegistry;
  trans: TranslationBundle;
}

/** A session: where it stands, and what can be done with it. */
export function Card(props: ICardProps): JSX.Element {
  const { session, trans } = props;
  const { phase, progress } = session;
  // What went wrong before the card was drawn is no news: of a list of failed sessions, all would be read out.
  const [isNews, setNews] = React.useState(!session.error);
  React.useEffect(() => {
    if (!session.error) {
      setNews(true);
    }
  }, [session.error]);
  const coming = progress && (phase === 'created' || phaseKind(phase) === 'busy');
  return (
    <article
      className="jp-ClearML-card"
      data-session-id={session.id}
      tabIndex={-1}
      data-phase={phase}
      aria-label={trans.__('Session %1: %2', session.name, phaseName(phase, trans))}
    >
      <header className="jp-ClearML-card-header">
        <h4 title={session.name}>{session.name}</h4>
        <PhaseChip session={session} trans={trans} />
        <MoreButton {...props} />
      </header>
      <Meta session={session} trans={trans} />
      {coming && <Steps session={session} trans={trans} />}
      {session.error && <ErrorBox error={session.error} alert={isNews} trans={trans} />}
      {session.kernels_error && (
        <NoKernels error={session.kernels_error} trans={trans} />
      )}
      <Actions {...props} />
      <Details {...props} />
    </article>
  );
}

/** The phase as a coloured word. */
export function PhaseChip(props: {
  session: ISession;
  trans: TranslationBundle;
}): JSX.Element {
  const { phase, phase_text: text } = props.session;
  return (
    <span className="jp-ClearML-chip" data-kind={phaseKind(phase)} title={text}>
      {phaseName(phase, props.trans)}
    </span>
  );
}

function Meta(props: { session: ISession; trans: TranslationBundle }): JSX.Element {
  const { session, trans } = props;
  const since = session.ended ?? session.started ?? session.created;
  const parts = [
    session.mine ? '' : (session.user?.name ?? ''),
    session.queue?.name ?? '',
    since ? ago(since, trans) : '',
    session.phase === 'ready' && session.tunnel.rtt_ms !== null
      ? trans.__('%1 ms away', Math.max(1, Math.round(session.tunnel.rtt_ms)))
      : ''
  ].filter(Boolean);
  return <p className="jp-ClearML-meta">{parts.join(' · ')}</p>;
}

/** How far the session has come, and the last thing that it said. */
function Steps(props: { session: ISession; trans: TranslationBundle }): JSX.Element {
  const { session, trans } = props;
  const { progress } = session;
  const text = progress?.text || session.phase_text;
  return (
    <div className="jp-ClearML-progress">
      <ProgressBar
        name={trans.__('Progress of %1', session.name)}
        percent={Math.round(100 * fraction(session))}
        text={text}
      />
      <p className="jp-ClearML-step">
        {progress && (
          <span className="jp-ClearML-dim">
            {trans.__('%1 of %2', progress.step, progress.steps)}{' '}
          </span>
        )}
        {text}
      </p>
      {progress?.last_line && (
        <p className="jp-ClearML-lastLine" title={progress.last_line}>
          {progress.last_line}
        </p>
      )}
    </div>
  );
}

/** A failure: what, what to do, and the last lines of the log where there are some. */
export function ErrorBox(props: {
  error: IErrorBody;
  /** Whether it is read out at once. */
  alert?: boolean;
  trans: TranslationBundle;
  children?: React.ReactNode;
}): JSX.Element {
  const { error, alert = true, trans } = props;
  const tail = error.detail?.log_tail ?? [];
  return (
    <div
      className="jp-ClearML-error"
      role={alert ? 'alert' : undefined}
      data-code={error.code}
    >
      <p className="jp-ClearML-error-message">{error.message}</p>
      {error.hint && <p className="jp-ClearML-error-hint">{error.hint}</p>}
      {tail.length > 0 && (
        <details>
          <summary>{trans.__('Last lines of the log')}</summary>
          <pre>{tail.join('\n')}</pre>
        </details>
      )}
      {props.children}
    </div>
  );
}

/** Quieter than a failure: the rest of the session can be used. */
function NoKernels(props: {
  error: IErrorBody;
  trans: TranslationBundle;
}): JSX.Element {
  const { error, trans } = props;
  return (
    <div className="jp-ClearML-warning" role="note" data-code={error.code}>
      <p>{trans.__('No kernels: %1', error.message)}</p>
      {error.hint && <p className="jp-ClearML-dim">{error.hint}</p>}
    </div>
  );
}

function Actions(props: ICardProps): JSX.Element | null {
  const { commands, session } = props;
  const main = [
    CommandIDs.attach,
    CommandIDs.openVscode,
    CommandIDs.openTerminal,
    CommandIDs.openFiles,
    ...(session.phase === 'reconnecting' || session.phase === 'failed'
      ? [CommandIDs.reconnect]
      : []),
    ...(WITH_LOG.has(session.phase) && !isReachable(session) ? [CommandIDs.log] : []),
    CommandIDs.again,
    CommandIDs.continueSession,
    CommandIDs.dismiss,
    ...(commands.isVisible(CommandIDs.dismiss, { id: session.id })
      ? []
      : [CommandIDs.deleteSession]),
    CommandIDs.shutdown
  ];
  return (
    <div className="jp-ClearML-actions">
      <CommandButton {...props} id={CommandIDs.openJupyter} primary />
      {main.map(id => (
        <CommandButton key={id} {...props} id={id} />
      ))}
    </div>
  );
}

/** A button that runs a command on the session; not there where the command makes no sense. */
function CommandButton(
  props: ICardProps & { id: string; primary?: boolean }
): JSX.Element | null {
  const { commands, id, session } = props;
  const [busy, setBusy] = React.useState(false);
  const args = { id: session.id };
  if (!commands.hasCommand(id) || !commands.isVisible(id, args)) {
    return null;
  }
  const icon = commands.icon(id, args);
  const run = async () => {
    if (busy) {
      return;
    }
    setBusy(true);
    try {
      await commands.execute(id, args);
    } finally {
      setBusy(false);
    }
  };
  return (
    <button
      type="button"
      className={`jp-ClearML-button${props.primary ? ' jp-mod-primary' : ''}`}
      data-command={id}
      title={commands.caption(id, args)}
      disabled={!commands.isEnabled(id, args)}
      aria-disabled={busy} // and keeps the focus, to get it back from a dialog
      onClick={() => void run()}
    >
      {icon instanceof LabIcon && <icon.react tag="span" className="jp-ClearML-icon" />}
      {commands.label(id, args)}
    </button>
  );
}

function MoreButton(props: ICardProps): JSX.Element {
  const { session, commands, trans } = props;
  const open = (event: React.MouseEvent<HTMLButtonElement>) => {
    const menu = new MenuSvg({ commands });
    const args = { id: session.id };
    MENU.forEach((group, index) => {
      if (index > 0) {
        menu.addItem({ type: 'separator' });
      }
      group.forEach(command => menu.addItem({ command, args }));
    });
    openMenu(menu, event.currentTarget);
  };
  return (
    <button
      type="button"
      className="jp-ClearML-iconButton"
      aria-haspopup="menu"
      aria-label={trans.__('More for %1', session.name)}
      title={trans.__('More')}
      onClick={open}
    >
      <ellipsesIcon.react tag="span" className="jp-ClearML-icon" />
    </button>
  );
}

/** Open a menu below a button; it is disposed when it closes, and the focus goes back. */
export function openMenu(menu: Menu, button: HTMLElement): void {
  const { left, bottom } = button.getBoundingClientRect();
  menu.aboutToClose.connect(() => {
    button.focus();
    // The command is run after the menu has closed.
    requestAnimationFrame(() => menu.dispose());
  });
  menu.open(left, bottom);
}

function Details({ api, session, trans }: ICardProps): JSX.Element {
  const { tunnel, spec } = session;
  const [open, setOpen] = React.useState(false);
  return (
    <details
      className="jp-ClearML-details"
      onToggle={event => setOpen(event.currentTarget.open)}
    >
      <summary>{trans.__('Details')}</summary>
      <dl className="jp-ClearML-facts">
        <dt>{trans.__('Id')}</dt>
        <dd>
          <code title={session.id}>{shortId(session.id)}…</code>
          <CopyButton text={session.id} name={trans.__('the id')} trans={trans} />
        </dd>
        <Row name={trans.__('State')}>{session.phase_text}</Row>
        <Row name={trans.__('Project')}>{session.project}</Row>
        <Row name={trans.__('User')}>{session.user?.name}</Row>
        <Row name={trans.__('Tags')}>{session.tags.join(', ')}</Row>
        <Row name={trans.__('Comment')}>{session.comment}</Row>
        <Row name={trans.__('Launched by')}>{session.launched_by}</Row>
        <Row name={trans.__('Debugs Task')}>
          {session.parent && <code>{shortId(session.parent)}…</code>}
        </Row>
        <Row name={trans.__('Docker image')}>{spec.docker as string}</Row>
        <Row name={trans.__('Packages')}>
          {Array.isArray(spec.packages) && spec.packages.join(', ')}
        </Row>
        <Row name={trans.__('Kernels')}>
          {session.kernels_error
            ? trans.__('not available: %1', session.kernels_error.message)
            : session.kernelspecs.join(', ')}
        </Row>
        {isLive(session) && (
          <>
            <Row name={trans.__('Connection')}>{tunnelText(session, trans)}</Row>
            <dt>{trans.__('Host key')}</dt>
            <dd>
              <HostKey trust={tunnel.host_key} trans={trans} />
            </dd>
          </>
        )}
        {open && isReachable(session) && (
          <Load api={api} sessionId={session.id} trans={trans} />
        )}
        <Row name={trans.__('ClearML')}>
          {session.web_url && (
            <a href={session.web_url} target="_blank" rel="noopener noreferrer">
              {trans.__('Open the Task')}
            </a>
          )}
        </Row>
      </dl>
    </details>
  );
}

function Row(props: { name: string; children: React.ReactNode }): JSX.Element | null {
  if (!props.children) {
    return null;
  }
  return (
    <>
      <dt>{props.name}</dt>
      <dd>{props.children}</dd>
    </>
  );
}

function tunnelText(session: ISession, trans: TranslationBundle): string {
  const { state, attempt, cause, rtt_ms: rtt } = session.tunnel;
  switch (state) {
    case 'up':
      return rtt === null
        ? trans.__('up')
        : trans.__('up, round trip %1 ms', Math.round(10 * rtt) / 10);
    case 'down':
      return can(session, 'attach') ? trans.__('not attached') : trans.__('not yet');
    case 'connecting':
      return trans.__('connecting, attempt %1', Math.max(1, attempt));
    case 'reconnecting':
    case 'failed': {
      const text =
        state === 'failed'
          ? trans.__('failed')
          : trans.__('reconnecting, attempt %1', Math.max(1, attempt));
      return cause ? `${text}: ${cause.message}` : text;
    }
  }
}

function HostKey(props: {
  trust: ITunnel['host_key'];
  trans: TranslationBundle;
}): JSX.Element {
  const { trust, trans } = props;
  const [text, why] = hostKeyWords(trust, trans);
  return (
    <span
      className="jp-ClearML-chip"
      data-kind={trust === 'unverified' ? 'warn' : 'good'}
      data-host-key={trust}
      title={why}
    >
      {text}
    </span>
  );
}

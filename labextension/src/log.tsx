/** The console of a session in a main area tab: follows while it is in sight, and can go back. */
import { Clipboard, ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Poll } from '@lumino/polling';
import * as React from 'react';

import { isLive } from './actions';
import { SessionError } from './request';
import type { ILogLine, ISessionModel } from './tokens';

const PAGE = 500;

/** How many lines are read at once where a page does not reach back to the lines that are there. */
const MOST = 5_000;

const INTERVAL = 2_000;

/** Content of the log tab. */
export class LogView extends ReactWidget {
  constructor(
    private readonly _model: ISessionModel,
    readonly sessionId: string,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-log');
    this._poll = new Poll({
      name: `jupyterlab-clearml-session:log-${sessionId}`,
      auto: true,
      factory: () => this._read(),
      frequency: { interval: INTERVAL, backoff: 2, max: 30_000 },
      standby: () => !this.isVisible || document.hidden || this._complete
    });
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this._poll.dispose();
      super.dispose();
    }
  }

  protected override render(): JSX.Element {
    return (
      <Log
        lines={this._lines}
        error={this._error}
        loading={this._loading}
        canGoBack={this._canGoBack}
        trans={this._trans}
        onEarlier={() => void this._earlier()}
      />
    );
  }

  private async _read(): Promise<void> {
    try {
      const session = this._model.get(this.sessionId);
      const over = session !== undefined && !isLive(session);
      await this._readNewest();
      this._error = '';
      this._complete = over;
    } catch (reason) {
      this._error = SessionError.from(reason).message;
      throw reason;
    } finally {
      this._loading = false;
      if (!this.isDisposed) {
        this.update();
      }
    }
  }

  private async _readNewest(): Promise<void> {
    const { api } = this._model;
    let lines = await api.log(this.sessionId, PAGE);
    if (!meet(this._lines, lines)) {
      lines = await api.log(this.sessionId, MOST);
    }
    if (meet(this._lines, lines)) {
      this._lines = merge(this._lines, lines);
    } else {
      // Lines would be missing in between. So the older ones go, and "Earlier Lines" fetches all of them again.
      this._lines = lines;
      this._canGoBack = true;
    }
  }

  private async _earlier(): Promise<void> {
    const before = this._lines[0]?.time;
    if (!before) {
      return;
    }
    try {
      const earlier = await this._model.api.log(this.sessionId, PAGE, before);
      if (this._lines[0].time !== before) {
        return; // it does not go before what is there now
      }
      this._canGoBack = earlier.length > 0;
      this._lines = merge(earlier, this._lines);
      this._error = '';
    } catch (reason) {
      this._error = SessionError.from(reason).message;
    }
    this.update();
  }

  private readonly _poll: Poll;
  private _lines: ILogLine[] = [];
  private _error = '';
  private _loading = true;
  private _canGoBack = true;
  private _complete = false;
}

/** Whether the newer run reaches back to the older one, so that no line is missing between them. */
function meet(older: ILogLine[], newer: ILogLine[]): boolean {
  const last = older.at(-1);
  return !last || newer.length === 0 || newer[0].time <= last.time;
}

/** Put two runs of lines together; where they overlap, the later one counts. */
export function merge(older: ILogLine[], newer: ILogLine[]): ILogLine[] {
  if (newer.length === 0) {
    return older;
  }
  const start = newer[0].time;
  const end = older.findIndex(line => line.time >= start);
  return end === -1 ? [...older, ...newer] : [...older.slice(0, end), ...newer];
}

interface ILogProps {
  lines: ILogLine[];
  error: string;
  loading: boolean;
  canGoBack: boolean;
  trans: TranslationBundle;
  onEarlier: () => void;
}

/** The lines, the newest in sight until the user scrolls up. */
export function Log(props: ILogProps): JSX.Element {
  const { lines, error, loading, canGoBack, trans, onEarlier } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const [follow, setFollow] = React.useState(true);
  React.useLayoutEffect(() => {
    if (follow && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [lines, follow]);
  return (
    <>
      <div className="jp-ClearML-log-bar">
        <label>
          <input
            type="checkbox"
            checked={follow}
            onChange={event => setFollow(event.target.checked)}
          />
          {trans.__('Follow')}
        </label>
        <button
          type="button"
          className="jp-ClearML-button"
          disabled={!canGoBack || lines.length === 0}
          onClick={onEarlier}
        >
          {trans.__('Earlier Lines')}
        </button>
        <button
          type="button"
          className="jp-ClearML-button"
          disabled={lines.length === 0}
          onClick={() =>
            Clipboard.copyToSystem(lines.map(line => line.text).join('\n'))
          }
        >
          {trans.__('Copy All')}
        </button>
        <span role="status" className="jp-ClearML-dim">
          {error || (loading ? trans.__('Loading…') : '')}
        </span>
      </div>
      <div
        ref={box}
        role="log"
        aria-label={trans.__('Console of the session')}
        // A log has to be scrolled with the keyboard too.
        // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex
        tabIndex={0}
        className="jp-ClearML-log-lines"
        onScroll={event => {
          const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
          setFollow(scrollHeight - scrollTop - clientHeight < 8);
        }}
      >
        {lines.length === 0 && !loading && !error ? (
          <p className="jp-ClearML-dim">{trans.__('Nothing was written yet.')}</p>
        ) : (
          <pre>{lines.map(line => line.text).join('\n')}</pre>
        )}
      </div>
    </>
  );
}

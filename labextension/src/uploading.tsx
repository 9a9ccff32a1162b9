/** How far the files of a session are that is being launched. */
import { UseSignal } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ProgressBar } from './progressBar';
import type { ISession, ISessionModel } from './tokens';

/**
 * Knows the session whose files are being uploaded: the server tells of it before it answers the launch. Make one when
 * the launch begins.
 */
export class Uploading {
  constructor(readonly model: ISessionModel) {
    this._before = new Set(model.active.map(session => session.id));
  }

  /** The session; null where there is none, or several that it could be. */
  get session(): ISession | null {
    const found = this.model.active.filter(
      session =>
        session.mine &&
        session.phase === 'created' &&
        session.progress?.fraction !== undefined &&
        !this._before.has(session.id)
    );
    return found.length === 1 ? found[0] : null;
  }

  private readonly _before: ReadonlySet<string>;
}

/** A bar with what is being done; nothing where no files are uploaded. */
export function UploadBar(props: {
  uploading: Uploading;
  trans: TranslationBundle;
}): JSX.Element {
  const { uploading, trans } = props;
  return (
    <UseSignal signal={uploading.model.changed}>
      {() => {
        const progress = uploading.session?.progress;
        if (!progress) {
          return <></>;
        }
        const percent = Math.round(100 * (progress.fraction ?? 0));
        const text = trans.__('%1: %2%', progress.text, percent);
        return (
          <div className="jp-ClearML-progress">
            <ProgressBar name={progress.text} percent={percent} text={text} />
            <p className="jp-ClearML-step">{text}</p>
          </div>
        );
      }}
    </UseSignal>
  );
}

/** The status bar item: how many sessions, and whether something needs a look. */
import { ReactWidget, UseSignal } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { sessionIcon } from './icons';
import { phaseKind, phaseName } from './text';
import type { ISessionModel } from './tokens';

/** What the item says; empty where there is nothing to say. */
export function statusText(model: ISessionModel, trans: TranslationBundle): string {
  if (model.status === null || model.status.mode === 'unconfigured') {
    return '';
  }
  if (model.error) {
    return trans.__('ClearML: not connected');
  }
  const ready = model.active.filter(session => session.phase === 'ready').length;
  const others = model.active.filter(session => session.phase !== 'ready');
  const worst =
    others.find(session => phaseKind(session.phase) === 'bad') ??
    others.find(session => session.phase === 'reconnecting') ??
    others.find(session => phaseKind(session.phase) === 'busy');
  const parts = [];
  if (ready > 0) {
    parts.push(trans.__('%1 ready', ready));
  }
  if (worst) {
    parts.push(phaseName(worst.phase, trans).toLowerCase());
  }
  return parts.length > 0 ? trans.__('ClearML: %1', parts.join(', ')) : '';
}

/** The item as a widget. */
export class StatusItem extends ReactWidget {
  constructor(
    private readonly _model: ISessionModel,
    private readonly _trans: TranslationBundle,
    private readonly _onClick: () => void
  ) {
    super();
    this.addClass('jp-ClearML-status');
  }

  protected override render(): JSX.Element {
    return (
      <UseSignal signal={this._model.changed}>
        {() => {
          const text = statusText(this._model, this._trans);
          return text ? (
            <button
              type="button"
              title={this._trans.__('Show the ClearML sessions')}
              onClick={this._onClick}
            >
              <sessionIcon.react tag="span" className="jp-ClearML-icon" />
              {text}
            </button>
          ) : (
            <></>
          );
        }}
      </UseSignal>
    );
  }
}

/**
 * What a notebook or a console says of the way to its kernel. The kernel of a session goes on while the connection is
 * made anew, and JupyterLab sees it alive all the time: without a word one would wonder why nothing comes.
 */
import type { ISessionContext } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Widget } from '@lumino/widgets';
import * as React from 'react';

import { isLive } from './actions';
import { phaseKind } from './text';
import type { ISession, ISessionModel } from './tokens';
import { shortId } from './tokens';

/** A notebook or a console: what they have in common without depending on either. */
export interface IHasContext extends Widget {
  sessionContext: ISessionContext;
}

/** The session on which a kernel of that name runs; undefined where it is none of ours. */
export function sessionOfKernel(
  model: ISessionModel,
  kernelName: string
): ISession | undefined {
  return model.active.find(session =>
    kernelName.startsWith(`clearml-${shortId(session.id)}-`)
  );
}

/** What is to be said of the way to a session; empty while all is well. */
export function linkText(session: ISession, trans: TranslationBundle): string {
  switch (session.phase) {
    case 'reconnecting':
      return trans.__('Reconnecting…');
    case 'connecting':
      return trans.__('Connecting…');
    case 'failed':
      return isLive(session) ? trans.__('Not connected') : '';
    default:
      return '';
  }
}

function caption(session: ISession, trans: TranslationBundle): string {
  const text = trans.__('%1: %2', session.name, session.phase_text);
  return session.phase === 'reconnecting'
    ? `${text}\n${trans.__('The kernel goes on, and nothing that it prints is lost.')}`
    : text;
}

/** An item for the toolbar of a notebook or a console; empty while all is well. */
export class KernelLink extends ReactWidget {
  constructor(private readonly _options: KernelLink.IOptions) {
    super();
    this.addClass('jp-ClearML-kernelLink');
    const { model, context } = _options;
    model.changed.connect(this.update, this);
    context.kernelChanged.connect(this.update, this);
  }

  override dispose(): void {
    this._options.model.changed.disconnect(this.update, this);
    this._options.context.kernelChanged.disconnect(this.update, this);
    super.dispose();
  }

  protected override render(): JSX.Element {
    const { trans, showPanel } = this._options;
    const session = this._session;
    const text = session ? linkText(session, trans) : '';
    return (
      <span role="status">
        {session && text && (
          <button
            type="button"
            className="jp-ClearML-chip"
            data-kind={phaseKind(session.phase)}
            title={caption(session, trans)}
            onClick={showPanel}
          >
            {text}
          </button>
        )}
      </span>
    );
  }

  private get _session(): ISession | undefined {
    const { model, context } = this._options;
    const name = context.session?.kernel?.name;
    return name === undefined ? undefined : sessionOfKernel(model, name);
  }
}

export namespace KernelLink {
  /** What an item needs. */
  export interface IOptions {
    model: ISessionModel;
    /** Of the notebook or console. */
    context: ISessionContext;
    trans: TranslationBundle;
    /** Shows the side panel, where there is more to be read. */
    showPanel: () => void;
  }
}

/** Deletes ended sessions from ClearML: first listed, then chosen, then one by one. */
import { Dialog, Notification, ReactWidget, showDialog } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { can } from './actions';
import { BodyDialog } from './dialog';
import { SessionError } from './request';
import type { ISession, ISessionModel } from './tokens';
import { shortId } from './tokens';
import { ago } from './text';

/** List the user's own ended sessions and delete the chosen ones, one by one and cancellable. */
export async function cleanUp(
  model: ISessionModel,
  trans: TranslationBundle
): Promise<void> {
  const { sessions } = await model.api.sessions('ended', false, false);
  const ended = sessions.filter(session => session.mine && can(session, 'delete'));
  const chosen = await confirmCleanUp(ended, trans);
  if (chosen.length === 0) {
    return;
  }
  let cancelled = false;
  const id = Notification.emit(trans.__('Deleting ended sessions'), 'in-progress', {
    autoClose: false,
    progress: 0,
    actions: [{ label: trans.__('Cancel'), callback: () => (cancelled = true) }]
  });
  let done = 0;
  try {
    for (const [index, session] of chosen.entries()) {
      if (cancelled) {
        break;
      }
      done += (await purge(model, session)) ? 1 : 0;
      Notification.update({ id, progress: (index + 1) / chosen.length });
    }
  } finally {
    Notification.dismiss(id);
  }
  Notification.success(trans._n('%1 session deleted', '%1 sessions deleted', done), {
    autoClose: 4000
  });
}

/** Delete a session; false where somebody else has done it before, which is no reason to keep the others. */
async function purge(model: ISessionModel, { id }: ISession): Promise<boolean> {
  let deleted = true;
  try {
    await model.api.purge(id);
  } catch (reason) {
    if (SessionError.from(reason).code !== 'unknown_session') {
      throw reason;
    }
    deleted = false;
  }
  model.remove(id);
  return deleted;
}

/** Ask for the sessions to delete. Those with a stored workspace have to be chosen one by one. */
async function confirmCleanUp(
  ended: ReadonlyArray<ISession>,
  trans: TranslationBundle
): Promise<ISession[]> {
  if (ended.length === 0) {
    await showDialog({
      title: trans.__('Clean up'),
      body: trans.__('You have no ended sessions.'),
      buttons: [Dialog.okButton({ label: trans.__('Close') })]
    });
    return [];
  }
  const dialog = new BodyDialog({
    title: trans.__('Delete ended sessions from ClearML?'),
    body: new CleanUpBody(ended, trans),
    buttons: [
      Dialog.cancelButton({ label: trans.__('Cancel') }),
      Dialog.warnButton({ label: trans.__('Delete Chosen') })
    ],
    defaultButton: 0
  });
  const result = await dialog.launch();
  return result.button.accept ? (result.value ?? []) : [];
}

class CleanUpBody extends ReactWidget implements Dialog.IBodyWidget<ISession[]> {
  constructor(
    private readonly _ended: ReadonlyArray<ISession>,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-ClearML-dialog');
    const expendable = _ended.filter(session => !session.spec.store_workspace);
    this._chosen = new Set(expendable.map(session => session.id));
  }

  getValue(): ISession[] {
    return this._ended.filter(session => this._chosen.has(session.id));
  }

  protected override render(): JSX.Element {
    return (
      <Choices
        ended={this._ended}
        chosen={this._chosen}
        trans={this._trans}
        onChoose={chosen => {
          this._chosen = chosen;
        }}
      />
    );
  }

  private _chosen: ReadonlySet<string>;
}

interface IChoicesProps {
  ended: ReadonlyArray<ISession>;
  /** Ids that are chosen at first. */
  chosen: ReadonlySet<string>;
  trans: TranslationBundle;
  onChoose: (chosen: ReadonlySet<string>) => void;
}

function Choices({ ended, trans, onChoose, ...props }: IChoicesProps): JSX.Element {
  const [chosen, setChosen] = React.useState(props.chosen);
  const choose = (ids: string[], wanted: boolean) => {
    const next = new Set(chosen);
    ids.forEach(id => (wanted ? next.add(id) : next.delete(id)));
    setChosen(next);
    onChoose(next);
  };
  const all = chosen.size === ended.length;
  return (
    <>
      <p>
        {trans.__(
          'The Tasks, logs and stored workspaces of the chosen sessions are deleted. This cannot be undone.'
        )}
      </p>
      <label className="jp-ClearML-choice">
        <input
          type="checkbox"
          checked={all}
          ref={box => {
            if (box) {
              box.indeterminate = !all && chosen.size > 0;
            }
          }}
          onChange={event =>
            choose(
              ended.map(session => session.id),
              event.target.checked
            )
          }
        />
        {trans.__('All')}
        <span className="jp-ClearML-dim" role="status">
          {trans.__('%1 of %2 chosen', chosen.size, ended.length)}
        </span>
      </label>
      <ul className="jp-ClearML-choices">
        {ended.map(session => (
          <li key={session.id}>
            <label className="jp-ClearML-choice">
              <input
                type="checkbox"
                checked={chosen.has(session.id)}
                onChange={event => choose([session.id], event.target.checked)}
              />
              <span className="jp-ClearML-choice-name">{session.name}</span>
              <span className="jp-ClearML-dim">
                {[
                  shortId(session.id),
                  session.ended ? ago(session.ended, trans) : '',
                  session.spec.store_workspace ? trans.__('has a workspace') : ''
                ]
                  .filter(Boolean)
                  .join(' · ')}
              </span>
            </label>
          </li>
        ))}
      </ul>
    </>
  );
}

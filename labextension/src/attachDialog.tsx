/** Attaches to a session that was launched elsewhere. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { findTaskId } from './actions';
import { BodyDialog } from './dialog';
import { SessionError } from './request';
import type { ISession } from './tokens';

/**
 * Ask for the id of a session, or the address of its page, and attach to it. The dialog stays, with what was typed,
 * until that has worked.
 *
 * @returns null when the user thought better of it
 */
export async function attachDialog(
  attach: (id: string) => Promise<ISession>,
  trans: TranslationBundle
): Promise<ISession | null> {
  const dialog = new AttachDialog(attach, trans);
  await dialog.launch();
  return dialog.session;
}

class AttachDialog extends BodyDialog {
  constructor(
    private readonly _attach: (id: string) => Promise<ISession>,
    trans: TranslationBundle
  ) {
    const body = new AttachBody(trans);
    super({
      title: trans.__('Attach to a session'),
      body,
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Attach') })
      ],
      focusNodeSelector: 'input'
    });
    this._form = body;
    this._form.onType = () => {
      this.acceptable = this._form.taskId !== null;
    };
    this.acceptable = false;
  }

  /** What was attached to. */
  session: ISession | null = null;

  override resolve(index?: number): void {
    if (index === 0) {
      super.resolve(index);
    } else if (this._form.taskId !== null && !this._form.busy) {
      void this._run(this._form.taskId);
    }
  }

  private async _run(id: string): Promise<void> {
    this._form.report(true, '');
    try {
      this.session = await this._attach(id);
    } catch (reason) {
      this._form.report(false, SessionError.from(reason).text);
      return;
    }
    if (!this.isDisposed) {
      super.resolve(1);
    }
  }

  private readonly _form: AttachBody;
}

class AttachBody extends ReactWidget {
  constructor(private readonly _trans: TranslationBundle) {
    super();
    this.addClass('jp-ClearML-dialog');
  }

  /** The id that was typed; null while it is none. */
  taskId: string | null = null;
  busy = false;
  /** Hears of each change. */
  onType: () => void = () => undefined;

  /** Show that it is being attached, or why it could not be. */
  report(busy: boolean, error: string): void {
    this.busy = busy;
    this._error = error;
    this.update();
  }

  protected override render(): JSX.Element {
    return (
      <Address
        busy={this.busy}
        error={this._error}
        trans={this._trans}
        onType={text => {
          this.taskId = findTaskId(text);
          this.onType();
          if (this._error) {
            this.report(false, '');
          }
        }}
      />
    );
  }

  private _error = '';
}

function Address(props: {
  busy: boolean;
  error: string;
  trans: TranslationBundle;
  onType: (text: string) => void;
}): JSX.Element {
  const { busy, error, trans } = props;
  const [text, setText] = React.useState('');
  return (
    <div className="jp-ClearML-field">
      <label htmlFor="jp-ClearML-attach" className="jp-ClearML-label">
        {trans.__('Id of the session, or its address in ClearML')}
      </label>
      <input
        id="jp-ClearML-attach"
        className="jp-ClearML-input"
        autoComplete="off"
        spellCheck={false}
        value={text}
        aria-invalid={error !== ''}
        aria-describedby="jp-ClearML-attach-help jp-ClearML-attach-error"
        onChange={event => {
          setText(event.target.value);
          props.onType(event.target.value);
        }}
      />
      <p id="jp-ClearML-attach-help" className="jp-ClearML-dim">
        {trans.__(
          'An id has 32 characters, 0 to 9 and a to f. In ClearML, copy it from the top of the Task.'
        )}
      </p>
      <p role="status" className="jp-ClearML-dim">
        {busy && trans.__('Attaching…')}
      </p>
      <p id="jp-ClearML-attach-error" role="alert" className="jp-ClearML-fieldError">
        {error}
      </p>
    </div>
  );
}

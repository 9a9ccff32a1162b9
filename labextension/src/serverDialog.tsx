/** From ClearML on this machine to a ClearML server. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ErrorBox } from './card';
import { BodyDialog, DialogBox, OWN_ENTER } from './dialog';
import { CredentialsForm, useConfigure } from './doors';
import type { ISessionModel } from './tokens';

/** Ask for the credentials of a server. The dialog stays, with what was typed, until they are accepted. */
export async function serverDialog(
  model: ISessionModel,
  trans: TranslationBundle
): Promise<void> {
  const dialog = new BodyDialog({
    title: trans.__('Connect to a ClearML server'),
    body: ReactWidget.create(
      <Connect model={model} trans={trans} onConnect={() => dialog.reject()} />
    ),
    buttons: [Dialog.cancelButton({ label: trans.__('Close') })],
    focusNodeSelector: 'textarea'
  });
  await dialog.launch();
}

function Connect(props: {
  model: ISessionModel;
  trans: TranslationBundle;
  onConnect: () => void;
}): JSX.Element {
  const { model, trans, onConnect } = props;
  const { busy, error, configure, cancel } = useConfigure(model);
  return (
    <DialogBox>
      <p>
        {trans.__(
          'As soon as the server has accepted the credentials, ClearML on this machine ends, and the sessions on it with all that runs in them.'
        )}
      </p>
      {error && !error.field && <ErrorBox error={error.body} trans={trans} />}
      <div {...{ [OWN_ENTER]: true }}>
        <CredentialsForm
          trans={trans}
          busy={busy !== null}
          disabled={busy !== null}
          error={error}
          onSubmit={credentials =>
            void configure('server', credentials).then(done => done && onConnect())
          }
          onCancel={cancel}
        />
      </div>
    </DialogBox>
  );
}

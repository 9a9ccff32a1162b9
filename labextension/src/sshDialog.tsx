/** How to get into a session with `ssh`, from a terminal or a desktop IDE. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { BodyDialog, Copyable, CopyButton, DialogBox, Loaded } from './dialog';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import { hostKeyWords } from './text';
import type { IForward, ISession } from './tokens';

/** Open a local port that leads to the session's SSH server, and show the command for it. */
export async function sshDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<void> {
  const dialog = new BodyDialog({
    title: trans.__('SSH to %1', session.name),
    body: ReactWidget.create(
      <Loaded
        load={() => api.forward(session.id, 'ssh')}
        waiting={trans.__('Opening a port of this machine…')}
        trans={trans}
      >
        {forward => <Ssh api={api} session={session} forward={forward} trans={trans} />}
      </Loaded>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Done') })]
  });
  await dialog.launch();
}

interface ISshProps {
  api: SessionAPI;
  session: ISession;
  forward: IForward;
  trans: TranslationBundle;
}

/** The command, the same for `~/.ssh/config`, and the password for whom wants to see it. */
export function Ssh({ api, session, forward, trans }: ISshProps): JSX.Element {
  return (
    <DialogBox>
      <section className="jp-ClearML-field">
        <h3 className="jp-ClearML-label">
          {trans.__('In a terminal of this machine')}
        </h3>
        <Copyable
          text={forward.ssh_command ?? ''}
          name={trans.__('the command')}
          trans={trans}
        />
      </section>
      <Password api={api} session={session} trans={trans} />
      <details>
        <summary>
          {trans.__('For VS Code, PyCharm and other programs: ~/.ssh/config')}
        </summary>
        <Copyable
          text={forward.ssh_config ?? ''}
          name={trans.__('the configuration')}
          trans={trans}
        />
      </details>
      <p className="jp-ClearML-dim">
        {trans.__(
          'Both go through port %1 of this machine, which is open until you close it under “Forwarded Ports…” or detach.',
          forward.local_port
        )}
      </p>
      <p className="jp-ClearML-dim">
        {trans.__('Host key: %1. %2', ...hostKeyWords(session.tunnel.host_key, trans))}
      </p>
    </DialogBox>
  );
}

/** Asked for only when somebody wants to see it, and forgotten with the dialog. */
function Password(props: Omit<ISshProps, 'forward'>): JSX.Element {
  const { api, session, trans } = props;
  const [password, setPassword] = React.useState<string | null>(null);
  const [error, setError] = React.useState('');
  const show = async () => {
    try {
      const shown = await api.forward(session.id, 'ssh', { showPassword: true });
      setPassword(shown.password ?? '');
      setError('');
    } catch (reason) {
      setError(SessionError.from(reason).text);
    }
  };
  return (
    <section className="jp-ClearML-field">
      <h3 className="jp-ClearML-label">{trans.__('Password')}</h3>
      <div className="jp-ClearML-secret">
        <output aria-label={trans.__('Password')}>
          {password === null ? (
            <>
              <span aria-hidden="true">••••••••••••</span>
              <span className="jp-ClearML-hidden">{trans.__('hidden')}</span>
            </>
          ) : (
            <code>{password}</code>
          )}
        </output>
        {password !== null && (
          <CopyButton text={password} name={trans.__('the password')} trans={trans} />
        )}
        <button
          type="button"
          className="jp-ClearML-button"
          onClick={() => (password === null ? void show() : setPassword(null))}
        >
          {password === null ? trans.__('Show Password') : trans.__('Hide Password')}
        </button>
      </div>
      <p role="alert" className="jp-ClearML-fieldError">
        {error}
      </p>
    </section>
  );
}

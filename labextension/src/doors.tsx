/** What the panel shows where ClearML is not configured: two doors. */
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ErrorBox } from './card';
import { parseCredentials } from './credentials';
import type { ICredentials } from './request';
import { SessionError } from './request';
import type { ISessionModel } from './tokens';

interface IDoorsProps {
  model: ISessionModel;
  trans: TranslationBundle;
}

const EMPTY: ICredentials = {
  api_server: '',
  web_server: '',
  files_server: '',
  access_key: '',
  secret_key: ''
};

/** Which of the doors. */
type Door = 'server' | 'local';

/** Goes through a door. Cancelled, or with what shows it gone, the way is given up. */
export function useConfigure(model: ISessionModel): {
  busy: Door | null;
  error: SessionError | null;
  /** True when we are through. */
  configure: (door: Door, credentials?: ICredentials) => Promise<boolean>;
  cancel: () => void;
} {
  const [busy, setBusy] = React.useState<Door | null>(null);
  const [error, setError] = React.useState<SessionError | null>(null);
  const aborter = React.useRef<AbortController | null>(null);
  const cancel = () => aborter.current?.abort();
  React.useEffect(() => cancel, []);

  const configure = async (door: Door, credentials = EMPTY) => {
    const { signal } = (aborter.current = new AbortController());
    setBusy(door);
    setError(null);
    try {
      await model.api.configure(
        door === 'local' ? { mode: 'local' } : credentials,
        signal
      );
      await model.refresh();
      return true;
    } catch (reason) {
      const failure = SessionError.from(reason);
      if (failure.code !== 'cancelled') {
        setError(failure);
      }
      return false;
    } finally {
      setBusy(null);
    }
  };
  return { busy, error, configure, cancel };
}

/** Paste credentials, or try it on this machine. */
export function Doors({ model, trans }: IDoorsProps): JSX.Element {
  const { busy, error, configure, cancel } = useConfigure(model);
  return (
    <div className="jp-ClearML-doors">
      <p>
        {trans.__(
          'ClearML is not configured on this machine yet. There are two ways to begin.'
        )}
      </p>
      {error && !error.field && <ErrorBox error={error.body} trans={trans} />}
      <section className="jp-ClearML-door" aria-labelledby="jp-ClearML-door-server">
        <h3 id="jp-ClearML-door-server">{trans.__('Connect to a ClearML server')}</h3>
        <CredentialsForm
          trans={trans}
          busy={busy === 'server'}
          disabled={busy !== null}
          error={error}
          onSubmit={credentials => void configure('server', credentials)}
          onCancel={cancel}
        />
      </section>
      <section className="jp-ClearML-door" aria-labelledby="jp-ClearML-door-local">
        <h3 id="jp-ClearML-door-local">{trans.__('Try it on this machine')}</h3>
        <p className="jp-ClearML-dim">
          {trans.__(
            'Starts a small ClearML server and a real agent here, for as long as this JupyterLab runs. Nothing of your system is changed.'
          )}
        </p>
        <div className="jp-ClearML-actions">
          <button
            type="button"
            className="jp-ClearML-button jp-mod-primary"
            data-action="try-local"
            disabled={busy !== null}
            onClick={() => void configure('local')}
          >
            {busy === 'local'
              ? trans.__('Starting…')
              : trans.__('Try It on This Machine')}
          </button>
          {busy === 'local' && <CancelButton trans={trans} onClick={cancel} />}
        </div>
      </section>
    </div>
  );
}

function CancelButton(props: {
  trans: TranslationBundle;
  onClick: () => void;
}): JSX.Element {
  return (
    <button type="button" className="jp-ClearML-button" onClick={props.onClick}>
      {props.trans.__('Cancel')}
    </button>
  );
}

interface IFormProps {
  trans: TranslationBundle;
  busy: boolean;
  disabled: boolean;
  error: SessionError | null;
  onSubmit: (credentials: ICredentials) => void;
  onCancel: () => void;
}

/** The five values, typed or found in what was pasted. */
export function CredentialsForm(props: IFormProps): JSX.Element {
  const { trans, busy, disabled, error } = props;
  const [values, setValues] = React.useState<ICredentials>(EMPTY);
  const [pasted, setPasted] = React.useState<number | null>(null);
  const [open, setOpen] = React.useState(false);
  const paste = (text: string) => {
    const found = parseCredentials(text);
    setPasted(text.trim() ? Object.keys(found).length : null);
    setOpen(old => old || text.trim() !== '');
    setValues(old => ({ ...old, ...found }));
  };
  const fields: Array<[keyof ICredentials, string, string, boolean]> = [
    ['api_server', trans.__('API server'), 'https://api.clear.ml', true],
    ['web_server', trans.__('Web server'), 'https://app.clear.ml', false],
    ['files_server', trans.__('Files server'), 'https://files.clear.ml', false],
    ['access_key', trans.__('Access key'), '', true],
    ['secret_key', trans.__('Secret key'), '', true]
  ];
  return (
    <form
      className="jp-ClearML-form"
      onSubmit={event => {
        event.preventDefault();
        props.onSubmit(values);
      }}
    >
      <label className="jp-ClearML-field">
        <span>{trans.__('Paste what ClearML shows')}</span>
        <textarea
          rows={3}
          spellCheck={false}
          autoComplete="off"
          className="jp-ClearML-input"
          placeholder={'api {\n  api_server: …\n}'}
          onChange={event => paste(event.target.value)}
        />
        <span className="jp-ClearML-dim" role="status">
          {pasted === null
            ? trans.__('In ClearML: Settings, Workspace, Create new credentials.')
            : trans._n('%1 value found', '%1 values found', pasted)}
        </span>
      </label>
      <details
        className="jp-ClearML-values"
        open={open || Boolean(error?.field)}
        onToggle={event => setOpen(event.currentTarget.open)}
        onInvalid={() => setOpen(true)} // a value is missing: it has to be seen
      >
        <summary>{trans.__('Or type the values')}</summary>
        {fields.map(([name, label, placeholder, required]) => (
          <label key={name} className="jp-ClearML-field">
            <span>{label}</span>
            <input
              name={name}
              type={name === 'secret_key' ? 'password' : 'text'}
              className="jp-ClearML-input"
              spellCheck={false}
              autoComplete="off"
              required={required}
              placeholder={placeholder}
              value={values[name]}
              aria-invalid={error?.field === name}
              onChange={event =>
                setValues(old => ({ ...old, [name]: event.target.value }))
              }
            />
            {error?.field === name && (
              <span role="alert" className="jp-ClearML-fieldError">
                {error.text}
              </span>
            )}
          </label>
        ))}
      </details>
      <div className="jp-ClearML-actions">
        <button
          type="submit"
          className="jp-ClearML-button jp-mod-primary"
          data-action="connect"
          disabled={disabled}
        >
          {busy ? trans.__('Checking…') : trans.__('Connect')}
        </button>
        {busy && <CancelButton trans={trans} onClick={props.onCancel} />}
      </div>
    </form>
  );
}

/** Ports of a session: one to open here, and those of this machine that lead there. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import {
  BodyDialog,
  CopyButton,
  DialogBox,
  Loaded,
  OWN_ENTER,
  choiceDialog
} from './dialog';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IForward, IListeningPort, ISession } from './tokens';

/** A port, or null for what is none. */
export function parsePort(text: string): number | null {
  const port = /^\d{1,5}$/.test(text.trim()) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : null;
}

// -- one to open ----------------------------------------------------------------------------------------------

/** Ask for a port of the remote machine, from those that something listens on; null when the user thought better. */
export function portDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<number | null> {
  return choiceDialog<number>({
    title: trans.__('Open a port of %1', session.name),
    accept: trans.__('Open'),
    choices: onChoose => (
      <ChoosePort api={api} session={session} trans={trans} onChoose={onChoose} />
    ),
    trans
  });
}

interface IPortsProps {
  api: SessionAPI;
  session: ISession;
  trans: TranslationBundle;
}

function ChoosePort(
  props: IPortsProps & { onChoose: (port: number | null) => void }
): JSX.Element {
  const { trans, onChoose } = props;
  const [text, setText] = React.useState('');
  const { ports, error } = useListening(props);
  const port = parsePort(text);
  React.useEffect(() => onChoose(port), [port, onChoose]);
  return (
    <>
      <PortInput
        label={trans.__('Port')}
        value={text}
        trans={trans}
        onChange={setText}
      />
      <div
        role="radiogroup"
        aria-label={trans.__('Ports that something listens on')}
        className="jp-ClearML-choices"
      >
        {(ports ?? []).map(found => (
          <label key={found.port} className="jp-ClearML-choice">
            <input
              type="radio"
              name="jp-ClearML-port"
              checked={port === found.port}
              onChange={() => setText(String(found.port))}
            />
            <span className="jp-ClearML-choice-name">{found.port}</span>
            <span className="jp-ClearML-dim">{found.process}</span>
          </label>
        ))}
      </div>
      <p role="status" className={error ? 'jp-ClearML-fieldError' : 'jp-ClearML-dim'}>
        {error ||
          (ports === null
            ? trans.__('Looking what listens there…')
            : ports.length === 0
              ? trans.__('Nothing listens there now.')
              : '')}
      </p>
    </>
  );
}

/** What listens over there; null until it is known. */
function useListening({ api, session }: IPortsProps): {
  ports: IListeningPort[] | null;
  error: string;
} {
  const [ports, setPorts] = React.useState<IListeningPort[] | null>(null);
  const [error, setError] = React.useState('');
  React.useEffect(() => {
    let wanted = true;
    api.ports(session.id).then(
      found => wanted && setPorts(found),
      (reason: unknown) => wanted && setError(SessionError.from(reason).message)
    );
    return () => {
      wanted = false;
    };
  }, [api, session.id]);
  return { ports, error };
}

function PortInput(props: {
  label: string;
  value: string;
  trans: TranslationBundle;
  placeholder?: string;
  /** Id of a list of ports to choose from. */
  list?: string;
  onChange: (text: string) => void;
  /** What Enter does; left out: it presses the button of the dialog. */
  onEnter?: () => void;
}): JSX.Element {
  const { label, value, trans, placeholder, list, onChange, onEnter } = props;
  const id = React.useId();
  const wrong = value.trim() !== '' && parsePort(value) === null;
  return (
    <div className="jp-ClearML-field">
      <label htmlFor={id} className="jp-ClearML-label">
        {label}
      </label>
      <input
        id={id}
        className="jp-ClearML-input"
        inputMode="numeric"
        autoComplete="off"
        placeholder={placeholder}
        list={list}
        value={value}
        aria-invalid={wrong}
        aria-describedby={`${id}-error`}
        {...(onEnter ? { [OWN_ENTER]: true } : {})}
        onChange={event => onChange(event.target.value)}
        onKeyDown={event => {
          if (event.key === 'Enter') {
            onEnter?.();
          }
        }}
      />
      <p id={`${id}-error`} role="alert" className="jp-ClearML-fieldError">
        {wrong && trans.__('A port is a whole number from 1 to 65535.')}
      </p>
    </div>
  );
}

// -- ports of this machine that lead there --------------------------------------------------------------------

/** Show the ports of this machine that lead to a session; more are opened, and closed, here. */
export async function forwardsDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<void> {
  const dialog = new BodyDialog({
    title: trans.__('Ports of this machine that lead to %1', session.name),
    body: ReactWidget.create(
      <Loaded
        load={() => api.forwards(session.id)}
        waiting={trans.__('Asking for open ports…')}
        trans={trans}
      >
        {forwards => (
          <Forwards api={api} session={session} forwards={forwards} trans={trans} />
        )}
      </Loaded>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Done') })]
  });
  await dialog.launch();
}

/** The forwards of a session, and a row to open another one. */
export function Forwards(props: IPortsProps & { forwards: IForward[] }): JSX.Element {
  const { api, session, trans } = props;
  const [forwards, setForwards] = React.useState(props.forwards);
  const [remote, setRemote] = React.useState('');
  const [local, setLocal] = React.useState('');
  const [busy, setBusy] = React.useState(false);
  const [error, setError] = React.useState('');
  const { ports } = useListening(props);
  const listId = React.useId();
  const names = new Map((ports ?? []).map(found => [found.port, found.process]));

  /** Do something to the ports, and show what came of it. */
  const act = async (run: () => Promise<unknown>): Promise<boolean> => {
    setBusy(true);
    try {
      await run();
      setForwards(await api.forwards(session.id));
      setError('');
      return true;
    } catch (reason) {
      setError(SessionError.from(reason).text);
      return false;
    } finally {
      setBusy(false);
    }
  };
  const remotePort = parsePort(remote);
  const localPort = local.trim() === '' ? undefined : parsePort(local);
  const ready = !busy && remotePort !== null && localPort !== null;
  const open = async () => {
    if (
      ready &&
      (await act(() => api.forward(session.id, remotePort, { localPort })))
    ) {
      setRemote('');
      setLocal('');
    }
  };
  const leadsTo = (forward: IForward) =>
    forward.remote_port === 'ssh'
      ? trans.__('SSH')
      : [String(forward.remote_port), names.get(forward.remote_port)]
          .filter(Boolean)
          .join(' · ');
  return (
    <DialogBox>
      {forwards.length === 0 ? (
        <p>{trans.__('None is open now.')}</p>
      ) : (
        <table className="jp-ClearML-table">
          <thead>
            <tr>
              <th scope="col">{trans.__('On this machine')}</th>
              <th scope="col">{trans.__('Leads to port')}</th>
              <th scope="col">
                <span className="jp-ClearML-hidden">{trans.__('Actions')}</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {forwards.map(forward => (
              <tr key={forward.local_port} data-local-port={forward.local_port}>
                <td>
                  <code>127.0.0.1:{forward.local_port}</code>
                  <CopyButton
                    text={`127.0.0.1:${forward.local_port}`}
                    name={trans.__('address 127.0.0.1:%1', forward.local_port)}
                    trans={trans}
                  />
                </td>
                <td>{leadsTo(forward)}</td>
                <td className="jp-ClearML-actions">
                  <button
                    type="button"
                    className="jp-ClearML-button"
                    aria-label={trans.__('Close local port %1', forward.local_port)}
                    disabled={busy}
                    onClick={() =>
                      void act(() => api.closeForward(session.id, forward.local_port))
                    }
                  >
                    {trans.__('Close')}
                  </button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <div
        className="jp-ClearML-forwardForm"
        role="group"
        aria-label={trans.__('Open another one')}
      >
        <PortInput
          label={trans.__('Port over there')}
          placeholder="6006"
          list={listId}
          value={remote}
          trans={trans}
          onChange={setRemote}
          onEnter={() => void open()}
        />
        <datalist id={listId}>
          {(ports ?? []).map(found => (
            <option key={found.port} value={found.port}>
              {found.process}
            </option>
          ))}
        </datalist>
        <PortInput
          label={trans.__('Port here')}
          placeholder={trans.__('any free one')}
          value={local}
          trans={trans}
          onChange={setLocal}
          onEnter={() => void open()}
        />
        <button
          type="button"
          className="jp-ClearML-button jp-mod-primary"
          disabled={!ready}
          onClick={() => void open()}
        >
          {trans.__('Open')}
        </button>
      </div>
      <p role="alert" className="jp-ClearML-fieldError">
        {error}
      </p>
      <p className="jp-ClearML-dim">
        {trans.__(
          'While a port is open, every user of this machine can connect to it. It stays open when the connection is made anew, and is closed when the session is detached.'
        )}
      </p>
    </DialogBox>
  );
}

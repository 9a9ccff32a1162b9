/** The kernels that live on a session. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { BodyDialog, DialogBox, Loaded } from './dialog';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IRemoteKernel, ISession } from './tokens';
import { shortId } from './tokens';
import { lasting } from './text';

/** Show the kernels of a session. They can be ended here; returns the one that is to be connected to. */
export async function kernelsDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<IRemoteKernel | null> {
  let chosen: IRemoteKernel | null = null;
  const connect = (kernel: IRemoteKernel) => {
    chosen = kernel;
    dialog.reject();
  };
  const dialog = new BodyDialog({
    title: trans.__('Kernels on %1', session.name),
    body: ReactWidget.create(
      <Loaded
        load={() => api.kernels(session.id)}
        waiting={trans.__('Asking the machine…')}
        trans={trans}
      >
        {kernels => (
          <Kernels
            api={api}
            session={session}
            kernels={kernels}
            trans={trans}
            onConnect={connect}
          />
        )}
      </Loaded>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
  await dialog.launch();
  return chosen;
}

/** The state of a kernel, and since when it has done nothing. */
function stateText(kernel: IRemoteKernel, trans: TranslationBundle): string {
  const { state, idle_s: idle } = kernel;
  return state === 'idle' && idle !== undefined && idle >= 60
    ? trans.__('idle for %1', lasting(idle, trans))
    : state;
}

interface IKernelsProps {
  api: SessionAPI;
  session: ISession;
  kernels: IRemoteKernel[];
  trans: TranslationBundle;
  onConnect: (kernel: IRemoteKernel) => void;
}

function Kernels(props: IKernelsProps): JSX.Element {
  const { api, session, trans } = props;
  const [kernels, setKernels] = React.useState(props.kernels);
  const [error, setError] = React.useState('');
  const [ending, setEnding] = React.useState<string | null>(null);
  /** Ask for the list again; returns what is to be said where it cannot be had. */
  const refresh = async (): Promise<string> => {
    try {
      setKernels(await api.kernels(session.id));
      return '';
    } catch (reason) {
      const { message } = SessionError.from(reason);
      return trans.__(
        'The kernel was shut down, but the list could not be brought up to date: %1',
        message
      );
    }
  };
  const kill = async (kernel: IRemoteKernel) => {
    setEnding(kernel.id);
    try {
      await api.killKernel(session.id, kernel.id);
      setKernels(old => old.filter(({ id }) => id !== kernel.id));
      setError(await refresh());
    } catch (reason) {
      setError(SessionError.from(reason).text);
    } finally {
      setEnding(null);
    }
  };
  return (
    <DialogBox>
      {kernels.length === 0 && <p>{trans.__('No kernel lives there now.')}</p>}
      <table className="jp-ClearML-table" hidden={kernels.length === 0}>
        <thead>
          <tr>
            <th scope="col">{trans.__('Kernel')}</th>
            <th scope="col">{trans.__('State')}</th>
            <th scope="col">{trans.__('Here')}</th>
            <th scope="col">
              <span className="jp-ClearML-hidden">{trans.__('Actions')}</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {kernels.map(kernel => (
            <tr key={kernel.id} data-kernel-id={kernel.id}>
              <td>
                {kernel.name} <code>{shortId(kernel.id)}</code>
                {kernel.meta?.notebook && (
                  <div className="jp-ClearML-dim" title={kernel.meta.notebook}>
                    {PathExt.basename(kernel.meta.notebook)}
                  </div>
                )}
              </td>
              <td>{stateText(kernel, trans)}</td>
              <td>
                {kernel.adopted ? trans.__('connected') : trans.__('not connected')}
              </td>
              <td className="jp-ClearML-actions">
                <button
                  type="button"
                  className="jp-ClearML-button jp-mod-primary"
                  onClick={() => props.onConnect(kernel)}
                >
                  {trans.__('Connect…')}
                </button>
                <button
                  type="button"
                  className="jp-ClearML-button"
                  disabled={ending !== null}
                  onClick={() => void kill(kernel)}
                >
                  {trans.__('Shut Down')}
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p role="alert" className="jp-ClearML-fieldError">
        {error}
      </p>
    </DialogBox>
  );
}

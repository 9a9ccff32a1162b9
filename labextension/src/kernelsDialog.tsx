/** The kernels that live on a session. */
import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { BodyDialog, DialogBox } from './dialog';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IRemoteKernel, ISession } from './tokens';
import { shortId } from './tokens';

/** Show the kernels of a session. They can be ended here; returns the one that is to be connected to. */
export async function kernelsDialog(
  api: SessionAPI,
  session: ISession,
  trans: TranslationBundle
): Promise<IRemoteKernel | null> {
  const kernels = await api.kernels(session.id);
  let chosen: IRemoteKernel | null = null;
  const connect = (kernel: IRemoteKernel) => {
    chosen = kernel;
    dialog.reject();
  };
  const dialog = new BodyDialog({
    title: trans.__('Kernels on %1', session.name),
    body: ReactWidget.create(
      <Kernels
        api={api}
        session={session}
        kernels={kernels}
        trans={trans}
        onConnect={connect}
      />
    ),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
  await dialog.launch();
  return chosen;
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
  const kill = async (kernel: IRemoteKernel) => {
    try {
      await api.killKernel(session.id, kernel.id);
      setKernels(await api.kernels(session.id));
      setError('');
    } catch (reason) {
      setError(SessionError.from(reason).message);
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
              <td>{kernel.state}</td>
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

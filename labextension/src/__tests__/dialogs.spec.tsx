import {
  act,
  cleanup,
  configure,
  fireEvent,
  render,
  screen
} from '@testing-library/react';
import { Clipboard, Dialog } from '@jupyterlab/apputils';
import * as React from 'react';

import { BodyDialog } from '../dialog';
import { Forwards, parsePort, portDialog } from '../portDialogs';
import { SessionError } from '../request';
import { sshDialog } from '../sshDialog';
import { fakeAPI, id, session, settle, trans } from './parts';

// jsdom knows <dialog>, but cannot open one: all in it counts as hidden.
configure({ defaultHidden: true });

const READY = session(1, 'ready');

afterEach(() => {
  cleanup();
  Dialog.flush();
  jest.restoreAllMocks();
});

function field(label: string): HTMLInputElement {
  return screen.getByLabelText<HTMLInputElement>(label);
}

async function click(name: string | RegExp): Promise<void> {
  fireEvent.click(screen.getByRole('button', { name }));
  await act(settle);
}

describe('parsePort', () => {
  it.each([
    ['6006', 6006],
    [' 80 ', 80],
    ['65535', 65_535],
    ['0', null],
    ['65536', null],
    ['', null],
    ['8e3', null],
    ['-1', null]
  ])('%j is %j', (text, port) => {
    expect(parsePort(text)).toBe(port);
  });
});

describe('portDialog', () => {
  const ports = [
    { port: 6006, process: 'tensorboard.main' },
    { port: 8888, process: '' }
  ];

  async function opened(listening = jest.fn().mockResolvedValue(ports)) {
    const done = portDialog(fakeAPI({ ports: listening }), READY, trans);
    await act(settle);
    const accept = screen.getByRole<HTMLButtonElement>('button', { name: 'Open' });
    return { done, accept };
  }

  it('lists what listens, to choose from', async () => {
    const { done, accept } = await opened();
    expect(accept.disabled).toBe(true);
    fireEvent.click(screen.getByRole('radio', { name: /tensorboard/ }));
    await act(settle);
    expect(field('Port').value).toBe('6006');
    accept.click();
    await expect(done).resolves.toBe(6006);
  });

  it('takes a typed number, also where it cannot be told what listens', async () => {
    const { done, accept } = await opened(
      jest.fn().mockRejectedValue(new Error('no /proc'))
    );
    expect(screen.getByText('no /proc')).toBeTruthy();
    fireEvent.change(field('Port'), { target: { value: '70000' } });
    await act(settle);
    expect(field('Port').getAttribute('aria-invalid')).toBe('true');
    expect(accept.disabled).toBe(true);
    fireEvent.change(field('Port'), { target: { value: '8501' } });
    await act(settle);
    accept.click();
    await expect(done).resolves.toBe(8501);
  });
});

describe('Forwards', () => {
  async function shown(calls: Parameters<typeof fakeAPI>[0] = {}) {
    const open = [
      { local_port: 40_022, remote_port: 'ssh' as const },
      { local_port: 40_023, remote_port: 6006 }
    ];
    const api = fakeAPI({
      ports: jest.fn().mockResolvedValue([{ port: 6006, process: 'tensorboard' }]),
      forwards: jest.fn().mockResolvedValue(open.slice(0, 1)),
      ...calls
    });
    render(<Forwards api={api} session={READY} forwards={open} trans={trans} />);
    await act(settle);
  }

  it('are listed with what they lead to', async () => {
    await shown();
    const rows = screen.getAllByRole('row').map(row => row.textContent);
    expect(rows).toHaveLength(3);
    expect(rows[1]).toContain('127.0.0.1:40022SSH');
    expect(rows[2]).toContain('6006 · tensorboard');
  });

  it('are closed one by one', async () => {
    const closeForward = jest.fn().mockResolvedValue(null);
    await shown({ closeForward });
    await click('Close local port 40023');
    expect(closeForward).toHaveBeenCalledWith(id(1), 40_023);
    expect(screen.getAllByRole('row')).toHaveLength(2);
  });

  it('are opened at any free port, or at the one that is named', async () => {
    const forward = jest.fn().mockResolvedValue({ local_port: 1, remote_port: 8000 });
    await shown({ forward });
    expect(
      screen.getByRole<HTMLButtonElement>('button', { name: 'Open' }).disabled
    ).toBe(true);
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    fireEvent.keyDown(field('Port over there'), { key: 'Enter' });
    await act(settle);
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    fireEvent.change(field('Port here'), { target: { value: '9000' } });
    await click('Open');
    expect(forward.mock.calls).toEqual([
      [id(1), 8000, { localPort: undefined }],
      [id(1), 8000, { localPort: 9000 }]
    ]);
  });

  it('say why one could not be opened, and keep what was typed', async () => {
    const inUse = new SessionError({ code: 'conflict', message: 'in use' }, 409);
    await shown({ forward: jest.fn().mockRejectedValue(inUse) });
    fireEvent.change(field('Port over there'), { target: { value: '8000' } });
    await click('Open');
    expect(screen.getByText('in use')).toBeTruthy();
    expect(field('Port over there').value).toBe('8000');
  });
});

describe('sshDialog', () => {
  const answer = {
    local_port: 40_022,
    remote_port: 'ssh',
    ssh_command: 'ssh -p 40022'
  };

  it('shows the password only on request, and never again by itself', async () => {
    const forward = jest
      .fn()
      .mockResolvedValueOnce(answer)
      .mockResolvedValue({ ...answer, password: 's3cret' });
    const done = sshDialog(fakeAPI({ forward }), READY, trans);
    await act(settle);
    expect(forward.mock.calls).toEqual([[id(1), 'ssh']]);
    expect(document.body.textContent).not.toContain('s3cret');
    await click('Show Password');
    expect(forward.mock.calls[1]).toEqual([id(1), 'ssh', { showPassword: true }]);
    expect(screen.getByText('s3cret')).toBeTruthy();
    await click('Hide Password');
    expect(document.body.textContent).not.toContain('s3cret');
    await click('Done');
    await done;
    expect(document.querySelector('.jp-Dialog')).toBeNull();
  });

  it('copies the command, and says so', async () => {
    const copy = jest.spyOn(Clipboard, 'copyToSystem').mockImplementation();
    const forward = jest.fn().mockResolvedValue(answer);
    const done = sshDialog(fakeAPI({ forward }), READY, trans);
    await act(settle);
    await click('Copy the command');
    expect(copy).toHaveBeenCalledWith('ssh -p 40022');
    expect(screen.getByText('Copied')).toBeTruthy();
    await click('Done');
    await done;
  });
});

describe('BodyDialog', () => {
  function press(target: Element): Event {
    const event = new KeyboardEvent('keydown', {
      key: 'Enter',
      bubbles: true,
      cancelable: true
    });
    target.dispatchEvent(event);
    return event;
  }

  it('leaves Enter to the buttons of its body, and takes it everywhere else', async () => {
    const body = (
      <>
        <button type="button">own</button>
        <input />
      </>
    );
    const dialog = new BodyDialog({
      body,
      buttons: [Dialog.okButton({ label: 'Ok' })]
    });
    let closed = false;
    void dialog.launch().then(() => (closed = true));
    await act(settle);
    const own = screen.getByRole('button', { name: 'own' });
    own.focus();
    expect(press(own).defaultPrevented).toBe(false);
    await act(settle);
    expect(closed).toBe(false);
    const input = dialog.node.querySelector('input');
    input?.focus();
    press(input as Element);
    await act(settle);
    expect(closed).toBe(true);
  });

  it('is not accepted before its body is ready, but can be cancelled', async () => {
    const dialog = new BodyDialog({
      body: <p />,
      buttons: [Dialog.cancelButton(), Dialog.okButton({ label: 'Ok' })]
    });
    const done = dialog.launch();
    await act(settle);
    dialog.acceptable = false;
    dialog.resolve();
    expect(dialog.isDisposed).toBe(false);
    dialog.resolve(0);
    expect((await done).button.accept).toBe(false);
  });
});

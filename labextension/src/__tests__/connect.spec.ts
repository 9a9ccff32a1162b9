import type { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog } from '@jupyterlab/apputils';
import { CommandRegistry } from '@lumino/commands';
import { Widget } from '@lumino/widgets';

import { connectKernel } from '../connect';
import { taskDialog } from '../taskDialog';
import { fakeAPI, id, session, settle, trans, until } from './parts';

const KERNEL = {
  id: 'k1',
  name: 'python3',
  state: 'idle',
  started: null,
  adopted: false
};

function button(label: string): HTMLButtonElement {
  const found = [...document.querySelectorAll<HTMLButtonElement>('.jp-Dialog button')];
  const one = found.find(candidate => candidate.textContent?.trim() === label);
  if (!one) {
    throw new Error(`no button ${label}`);
  }
  return one;
}

afterEach(() => Dialog.flush());

describe('connectKernel', () => {
  function notebook(title: string, path: string) {
    const changeKernel = jest.fn().mockResolvedValue(null);
    const widget = Object.assign(new Widget(), {
      sessionContext: { path, changeKernel }
    });
    widget.title.label = title;
    return widget;
  }

  async function connect(
    choice: string,
    open = [notebook('here.ipynb', 'here.ipynb')]
  ) {
    const executed: Array<[string, unknown]> = [];
    const commands = new CommandRegistry();
    for (const command of [
      'docmanager:new-untitled',
      'docmanager:open',
      'console:open'
    ]) {
      commands.addCommand(command, {
        execute: args => {
          executed.push([command, args]);
          return { path: 'sub/Untitled.ipynb', name: 'Untitled.ipynb' };
        }
      });
    }
    const connection = { dispose: jest.fn() };
    const sessions = { startNew: jest.fn().mockResolvedValue(connection) };
    const shell = {
      widgets: () => [new Widget(), ...open][Symbol.iterator](),
      activateById: jest.fn()
    };
    const api = fakeAPI({ adoptKernel: jest.fn().mockResolvedValue('local-id') });
    const done = connectKernel(
      { commands, shell, serviceManager: { sessions } } as unknown as JupyterFrontEnd,
      api,
      session(1, 'ready'),
      KERNEL,
      trans
    );
    await settle();
    const select = document.querySelector<HTMLSelectElement>('.jp-Dialog select');
    const choices = [...(select?.options ?? [])].map(option => option.text);
    if (select) {
      select.value = choice;
    }
    button('Connect').click();
    await done;
    return { api, executed, open, shell, choices, sessions, connection };
  }

  it('offers what is open, and new ones', async () => {
    const { choices } = await connect('A new console');
    expect(choices).toEqual(['here.ipynb (open)', 'A new notebook', 'A new console']);
  });

  it('adopts the kernel and gives it to the open notebook', async () => {
    const { api, open, executed } = await connect('here.ipynb (open)');
    expect(api.adoptKernel).toHaveBeenCalledWith(id(1), 'k1');
    expect(open[0].sessionContext.changeKernel).toHaveBeenCalledWith({
      id: 'local-id'
    });
    expect(executed).toEqual([]);
  });

  it('tells notebooks of one title apart by their paths', async () => {
    const open = [notebook('a.ipynb', 'x/a.ipynb'), notebook('a.ipynb', 'y/a.ipynb')];
    const { choices, shell } = await connect('a.ipynb (open: y/a.ipynb)', open);
    expect(choices.slice(0, 2)).toEqual([
      'a.ipynb (open: x/a.ipynb)',
      'a.ipynb (open: y/a.ipynb)'
    ]);
    expect(open[0].sessionContext.changeKernel).not.toHaveBeenCalled();
    expect(open[1].sessionContext.changeKernel).toHaveBeenCalledTimes(1);
    expect(shell.activateById).toHaveBeenCalledWith(open[1].id);
  });

  it('offers a notebook once, however many views of it are open', async () => {
    const one = notebook('a.ipynb', 'a.ipynb');
    const view = Object.assign(new Widget(), { sessionContext: one.sessionContext });
    view.title.label = 'a.ipynb';
    const { choices } = await connect('A new console', [one, view]);
    expect(choices).toEqual(['a.ipynb (open)', 'A new notebook', 'A new console']);
  });

  it('gives it to a new notebook, whose session is there before it is opened', async () => {
    const { executed, sessions, connection } = await connect('A new notebook');
    expect(sessions.startNew).toHaveBeenCalledWith({
      path: 'sub/Untitled.ipynb',
      name: 'Untitled.ipynb',
      type: 'notebook',
      kernel: { id: 'local-id' }
    });
    expect(connection.dispose).toHaveBeenCalled();
    expect(executed.map(([command]) => command)).toEqual([
      'docmanager:new-untitled',
      'docmanager:open'
    ]);
  });

  it('gives it to a new console', async () => {
    const { executed, sessions } = await connect('A new console');
    const { path, type } = sessions.startNew.mock.calls[0][0];
    expect(type).toBe('console');
    expect(executed).toEqual([['console:open', { path, activate: true }]]);
  });
});

describe('taskDialog', () => {
  const task = (number: number, name: string) => ({
    id: id(number),
    name,
    status: 'failed',
    project: 'vision',
    created: null,
    repository: 'https://git.example.org/x.git',
    branch: '',
    commit: ''
  });

  const buttonIs = (label: string, disabled: boolean) =>
    until(() => {
      const found = [
        ...document.querySelectorAll<HTMLButtonElement>('.jp-Dialog button')
      ];
      return found.find(
        one => one.textContent?.trim() === label && one.disabled === disabled
      );
    });

  async function type(text: string): Promise<void> {
    const input = await until(() =>
      document.querySelector<HTMLInputElement>('.jp-Dialog input[type=search]')
    );
    const setter = Object.getOwnPropertyDescriptor(
      HTMLInputElement.prototype,
      'value'
    )?.set;
    setter?.call(input, text);
    input.dispatchEvent(new Event('input', { bubbles: true }));
  }

  it('takes the only Task that is found', async () => {
    const tasks = jest
      .fn()
      .mockImplementation(async (text: string) =>
        [task(1, 'train'), task(2, 'plot')].filter(found => found.name.includes(text))
      );
    const done = taskDialog(fakeAPI({ tasks }), trans);
    await buttonIs('Continue', true);
    await type('plot');
    (await buttonIs('Continue', false)).click();
    await expect(done).resolves.toBe(id(2));
  });

  it('takes an address of ClearML, also of a Task that is not found', async () => {
    const done = taskDialog(fakeAPI({ tasks: jest.fn().mockResolvedValue([]) }), trans);
    await type(`https://app.clear.ml/projects/*/experiments/${id(9)}/execution`);
    (await buttonIs('Continue', false)).click();
    await expect(done).resolves.toBe(id(9));
  });

  it('takes what was typed last, not what was chosen before it', async () => {
    const tasks = jest
      .fn()
      .mockResolvedValueOnce([task(1, 'train'), task(2, 'plot')])
      .mockReturnValue(new Promise(() => undefined)); // still searching
    const done = taskDialog(fakeAPI({ tasks }), trans);
    const radio = () =>
      document.querySelector<HTMLInputElement>('.jp-Dialog input[type=radio]');
    (await until(radio)).click();
    await buttonIs('Continue', false);
    await type('another');
    await buttonIs('Continue', true);
    expect(radio()?.checked).toBe(false);
    radio()?.click();
    await type(id(9));
    radio()?.click(); // what the list shows is older than the id
    (await buttonIs('Continue', false)).click();
    await expect(done).resolves.toBe(id(9));
  });

  it('cannot be accepted before a Task is chosen', async () => {
    const tasks = jest.fn().mockResolvedValue([task(1, 'train'), task(2, 'plot')]);
    const done = taskDialog(fakeAPI({ tasks }), trans);
    await buttonIs('Continue', true);
    const radio = await until(
      () =>
        document.querySelectorAll<HTMLInputElement>('.jp-Dialog input[type=radio]')[1]
    );
    radio.click();
    (await buttonIs('Continue', false)).click();
    await expect(done).resolves.toBe(id(2));
  });

  it('is nothing when it is cancelled', async () => {
    const done = taskDialog(fakeAPI({ tasks: jest.fn().mockResolvedValue([]) }), trans);
    (await buttonIs('Cancel', false)).click();
    await expect(done).resolves.toBeNull();
  });
});

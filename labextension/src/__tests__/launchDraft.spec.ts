import { nullTranslator } from '@jupyterlab/translation';
import { PromiseDelegate } from '@lumino/coreutils';

import { AGAIN, DEFAULTS, LAST_USED, LaunchDraft } from '../launchDraft';
import type { ILaunchRequest } from '../launchDraft';
import { validate } from '../launchValues';
import { RepositoryOffer } from '../repository';
import { SessionError } from '../request';
import type { IRepository, ISession } from '../tokens';
import { SCHEMA, fakeAPI, id, session, settle, trans } from './parts';

async function loaded(calls: Parameters<typeof fakeAPI>[0] = {}) {
  const api = fakeAPI(calls);
  const draft = new LaunchDraft(api, trans);
  await draft.load();
  return { api, draft };
}

afterEach(() => {
  jest.useRealTimers();
  jest.restoreAllMocks();
});

describe('LaunchDraft', () => {
  it('begins with the defaults of the schema and sends none of them', async () => {
    const { draft } = await loaded();
    expect(draft.chosen).toBe(DEFAULTS);
    expect(draft.values.jupyter_lab).toBe(true);
    expect(draft.spec()).toEqual({});
    expect(draft.groups()).toEqual(['basic', 'advanced']);
    expect(Object.keys(draft.group('basic').properties)).toEqual([
      'queue',
      'name',
      'packages'
    ]);
  });

  it('begins with the last launch, without what belonged to that one alone', async () => {
    const last = {
      queue: 'gpu',
      name: 'tuesday',
      debugging_session: id(9),
      packages: ['torch'],
      gone_option: 1
    };
    const { draft } = await loaded({
      presets: jest.fn().mockResolvedValue({ presets: {}, last })
    });
    expect(draft.chosen).toBe(LAST_USED);
    expect(draft.spec()).toEqual({ queue: 'gpu', packages: ['torch'] });
  });

  it('leaves out empty values', async () => {
    const { draft } = await loaded();
    draft.set({ name: '  ', packages: ['', ' torch '], env: {}, jupyter_lab: false });
    expect(draft.spec()).toEqual({ packages: ['torch'], jupyter_lab: false });
  });

  it('launches, and gives the session back', async () => {
    const launched = session(1, 'queued');
    const { api, draft } = await loaded({
      launch: jest.fn().mockResolvedValue(launched)
    });
    draft.set({ queue: 'gpu' });
    await expect(draft.launch()).resolves.toBe(launched);
    expect(api.launch.mock.calls[0][0]).toEqual({ queue: 'gpu' });
    expect(draft.busy).toBeNull();
  });

  it('does not ask the server for what the schema forbids', async () => {
    const { api, draft } = await loaded();
    draft.set({ name: 'ab' });
    await expect(draft.launch()).resolves.toBeNull();
    expect(draft.errors).toEqual({ name: 'At least 3 characters' });
    expect(api.launch).not.toHaveBeenCalled();
  });

  it("puts the server's complaint to its field, keeps what was typed, forgives on change", async () => {
    const { draft } = await loaded({
      launch: jest.fn().mockRejectedValue(
        new SessionError(
          {
            code: 'unknown_queue',
            message: 'No queue gpu.',
            hint: 'Pick one.',
            detail: { field: 'queue' }
          },
          400
        )
      )
    });
    draft.set({ queue: 'gpu', packages: ['torch'] });
    await expect(draft.launch()).resolves.toBeNull();
    expect(draft.errors).toEqual({ queue: 'No queue gpu. Pick one.' });
    expect(draft.failure).toBeNull();
    expect(draft.spec()).toEqual({ queue: 'gpu', packages: ['torch'] });
    draft.set({ queue: 'default' });
    expect(draft.errors).toEqual({});
  });

  it('tells a failure that concerns no field, and keeps what was typed', async () => {
    const { draft } = await loaded({
      launch: jest
        .fn()
        .mockRejectedValue(
          new SessionError({ code: 'clearml_unreachable', message: 'away' }, 503)
        )
    });
    draft.set({ queue: 'gpu' });
    await draft.launch();
    expect(draft.failure?.message).toBe('away');
    expect(draft.values.queue).toBe('gpu');
  });

  /** Cancel a launch; then the server has made the session after all, and ends it. */
  async function cancelled(ended: ISession) {
    jest.useFakeTimers();
    const made = new PromiseDelegate<ISession>();
    const stopping = session(1, 'stopping', { status: 'queued' });
    const { draft, api } = await loaded({
      launch: jest.fn().mockReturnValue(made.promise),
      shutdown: jest.fn().mockResolvedValue(stopping),
      session: jest.fn().mockResolvedValueOnce(stopping).mockResolvedValue(ended),
      purge: jest.fn().mockResolvedValue(ended)
    });
    const launch = draft.launch();
    expect(draft.busy).toBe('launching');
    draft.cancel();
    await expect(launch).resolves.toBeNull();
    expect(draft.failure).toBeNull();
    expect(draft.busy).toBeNull();
    expect(api.shutdown).not.toHaveBeenCalled();
    made.resolve(session(1, 'queued'));
    await jest.advanceTimersByTimeAsync(0);
    expect(api.shutdown).toHaveBeenCalledWith(id(1));
    expect(api.purge).not.toHaveBeenCalled();
    await jest.advanceTimersByTimeAsync(10_000);
    return { api };
  }

  it('can be cancelled while launching, and leaves no Task behind', async () => {
    const { api } = await cancelled(session(1, 'ended', { status: 'stopped' }));
    expect(api.session).toHaveBeenCalledTimes(2);
    expect(api.purge.mock.calls).toEqual([[id(1)]]);
  });

  it('does not delete the Task of a cancelled launch that has run', async () => {
    const started = '2026-11-22T10:00:01Z';
    const ended = session(1, 'ended', { status: 'stopped', started });
    const { api } = await cancelled(ended);
    expect(api.purge).not.toHaveBeenCalled();
  });

  it('does not save a preset in the middle of a launch', async () => {
    const { draft, api } = await loaded({
      launch: jest.fn(() => new Promise(() => undefined)),
      savePreset: jest.fn().mockResolvedValue({ presets: {}, last: null })
    });
    void draft.launch();
    await expect(draft.savePreset('mine')).resolves.toBe(false);
    expect(api.savePreset).not.toHaveBeenCalled();
    expect(draft.busy).toBe('launching');
    expect(draft.launchable).toBe(false);
  });

  it('can be launched at once when the dialog is opened again', async () => {
    const { draft, api } = await loaded({
      launch: jest.fn().mockResolvedValue(session(1, 'queued'))
    });
    api.queues.mockReturnValue(new Promise(() => undefined)); // a slow answer
    void draft.load({ spec: { queue: 'gpu' } });
    expect((await draft.launch())?.id).toBe(id(1));
    expect(api.launch).toHaveBeenCalledWith({ queue: 'gpu' });
  });

  it('begins with what the dialog was last opened with, where it is still loading', async () => {
    const schema = new PromiseDelegate<typeof SCHEMA>();
    const draft = new LaunchDraft(
      fakeAPI({ schema: jest.fn().mockReturnValue(schema.promise) }),
      trans
    );
    const loading = draft.load({ spec: { queue: 'gpu' } });
    await draft.load({ spec: { debugging_session: id(3) } });
    schema.resolve(SCHEMA);
    await loading;
    expect(draft.spec()).toEqual({ debugging_session: id(3) });
  });

  it('keeps what was typed when the dialog is opened again', async () => {
    const { draft } = await loaded();
    draft.set({ queue: 'gpu' });
    await draft.load({ spec: { debugging_session: id(3) } });
    expect(draft.spec()).toEqual({ queue: 'gpu', debugging_session: id(3) });
  });

  it('forgets what was asked for one launch when it is opened for another', async () => {
    const { draft } = await loaded();
    await draft.load({ spec: { debugging_session: id(3) } });
    draft.set({ queue: 'gpu' });
    await draft.load({});
    expect(draft.spec()).toEqual({ queue: 'gpu' });
    const again = {
      name: 'old',
      spec: { packages: ['torch'], debugging_session: id(4) }
    };
    await draft.load({ again });
    expect(draft.spec()).toEqual(again.spec);
    await draft.load({});
    expect(draft.spec()).toEqual({ packages: ['torch'] });
    await draft.load({ spec: { debugging_session: id(3) } });
    draft.set({ debugging_session: id(5) });
    await draft.load({});
    expect(draft.spec().debugging_session).toBe(id(5)); // typed by the user
  });

  it('does not tell the failure of an earlier launch when it is opened again', async () => {
    const launch = jest
      .fn()
      .mockRejectedValue(new SessionError({ code: 'x', message: 'away' }, 503));
    const { draft } = await loaded({ launch });
    await draft.launch();
    expect(draft.failure?.message).toBe('away');
    await draft.load({});
    expect(draft.failure).toBeNull();
  });

  it('saves a preset without the password, chooses it, and deletes it', async () => {
    const presets = { presets: { mine: { queue: 'gpu' } }, last: null };
    const { api, draft } = await loaded({
      savePreset: jest.fn().mockResolvedValue(presets),
      deletePreset: jest.fn().mockResolvedValue({ presets: {}, last: null })
    });
    draft.set({ queue: 'gpu', password: 'secret' });
    await expect(draft.savePreset('mine')).resolves.toBe(true);
    expect(api.savePreset).toHaveBeenCalledWith('mine', { queue: 'gpu' });
    expect(draft.chosen).toBe('mine');
    await draft.deletePreset();
    expect(draft.chosen).toBe(DEFAULTS);
    expect(draft.values.queue).toBe('gpu');
  });

  it('takes what is wrong with the name of a preset for nothing in the options', async () => {
    const refusal = {
      code: 'invalid_input',
      message: 'Not with a slash.',
      detail: { field: 'name' }
    };
    const savePreset = jest.fn().mockRejectedValue(new SessionError(refusal, 400));
    const { draft } = await loaded({ savePreset });
    await expect(draft.savePreset('team/vision')).resolves.toBe(false);
    expect(draft.failure?.message).toBe('Not with a slash.');
    expect(draft.errors).toEqual({});
    expect(draft.refused).toBe(0);

    draft.set({ name: 'ab' }); // of the session
    await expect(draft.savePreset('mine')).resolves.toBe(false);
    expect(draft.errors).toEqual({ name: 'At least 3 characters' });
    expect(savePreset).toHaveBeenCalledTimes(1);
  });

  it.each(['..', LAST_USED])('does not call a preset %s', async name => {
    const { draft, api } = await loaded();
    await expect(draft.savePreset(name)).resolves.toBe(false);
    expect(draft.failure?.message).toBe(`A preset cannot be called “${name}”.`);
    expect(api.savePreset).not.toHaveBeenCalled();
  });

  it('takes a preset as a whole', async () => {
    const { draft } = await loaded({
      presets: jest
        .fn()
        .mockResolvedValue({ presets: { mine: { packages: ['torch'] } }, last: null })
    });
    draft.set({ queue: 'gpu' });
    draft.choose('mine');
    expect(draft.spec()).toEqual({ packages: ['torch'] });
  });

  it('says why it could not be drawn, and tries again', async () => {
    const schema = jest
      .fn()
      .mockRejectedValueOnce(new SessionError({ code: 'x', message: 'away' }, 503))
      .mockResolvedValue(SCHEMA);
    const draft = new LaunchDraft(fakeAPI({ schema }), trans);
    await draft.load({ spec: { queue: 'gpu' } });
    expect(draft.failure?.message).toBe('away');
    await draft.load();
    expect(draft.schema).toBe(SCHEMA);
    expect(draft.failure).toBeNull();
    expect(draft.spec()).toEqual({ queue: 'gpu' }); // what was asked for at first
  });
});

describe('options and queues that cannot be had any more', () => {
  const away = new SessionError({ code: 'deadline', message: 'away' }, 0);

  async function openedAgain() {
    const { api, draft } = await loaded({
      launch: jest.fn().mockRejectedValue(new Error('full'))
    });
    draft.set({ name: 'typed' });
    api.queues.mockRejectedValueOnce(away);
    await draft.load({ again: { name: 'tuesday', spec: { queue: 'gpu' } } });
    draft.set({ name: 'wednesday' });
    expect(draft.isUnanswered).toBe(true);
    return { api, draft };
  }

  it('can be asked for again, and what was typed stays', async () => {
    const { api, draft } = await openedAgain();
    api.queues.mockRejectedValueOnce(away);
    await draft.askAgain();
    expect(draft.failure).toBe(away);
    await draft.askAgain();
    expect(draft.failure).toBeNull();
    expect(draft.spec()).toEqual({ queue: 'gpu', name: 'wednesday' });
  });

  it('are told no longer when the dialog is opened again and they can', async () => {
    const { draft } = await openedAgain();
    await draft.load();
    expect(draft.failure).toBeNull();
  });

  it('are not what a launch has failed for', async () => {
    const { draft } = await openedAgain();
    const asking = draft.load({});
    await draft.launch();
    await asking;
    expect(draft.failure?.message).toBe('full');
    expect(draft.isUnanswered).toBe(false);
  });
});

describe('launching again', () => {
  it('begins with all that the session was launched with, whatever stood there', async () => {
    const { draft } = await loaded();
    draft.set({ packages: ['typed'] });
    const spec = { queue: 'gpu', name: 'tuesday', debugging_session: id(3), env: null };
    await draft.load({ again: { name: 'tuesday', spec } });
    expect(draft.chosen).toBe(AGAIN);
    expect(draft.spec()).toEqual({
      queue: 'gpu',
      name: 'tuesday',
      debugging_session: id(3)
    });
  });

  it('can be left for a preset, and come back to', async () => {
    const { draft } = await loaded();
    await draft.load({ again: { name: 'tuesday', spec: { queue: 'gpu' } } });
    draft.choose(DEFAULTS);
    expect(draft.spec()).toEqual({});
    draft.choose(AGAIN);
    expect(draft.spec()).toEqual({ queue: 'gpu' });
  });
});

describe('presets', () => {
  it('begin with the one called default, where nothing was launched yet', async () => {
    const { draft } = await loaded({
      presets: jest
        .fn()
        .mockResolvedValue({ presets: { default: { queue: 'gpu' } }, last: null })
    });
    expect(draft.chosen).toBe('default');
    expect(draft.spec()).toEqual({ queue: 'gpu' });
  });

  it('are not forgotten for an older answer, which waits for the queues', async () => {
    const queues = new PromiseDelegate<[]>();
    const { api, draft } = await loaded({
      savePreset: jest
        .fn()
        .mockResolvedValue({ presets: { mine: { queue: 'gpu' } }, last: null })
    });
    api.queues.mockReturnValue(queues.promise);
    const opened = draft.load({});
    await draft.savePreset('mine');
    queues.resolve([]);
    await opened;
    expect(Object.keys(draft.presets.presets)).toEqual(['mine']);
    api.presets.mockResolvedValue({ presets: {}, last: null });
    await draft.load({});
    expect(draft.presets.presets).toEqual({});
  });

  it('are imported from the command line, and begun with', async () => {
    const { draft } = await loaded({
      importPresets: jest.fn().mockResolvedValue({
        presets: { 'clearml-session': { queue: 'gpu' } },
        last: null,
        refused: ['jupyter_port']
      })
    });
    await draft.importPresets();
    expect(draft.chosen).toBe('clearml-session');
    expect(draft.spec()).toEqual({ queue: 'gpu' });
    expect(draft.refusedImports).toEqual(['jupyter_port']);
  });
});

describe('the repository of the folder', () => {
  const clone = {
    url: 'https://git/x.git',
    branch: 'main',
    commit: 'c0ffee',
    diff: '+1'
  };
  const found: IRepository = {
    name: 'x',
    files: ['a.py'],
    left_out: [],
    local_commits: 0,
    clone_repo: clone
  };
  const none = new SessionError({ code: 'not_a_repository', message: 'none' }, 400);

  async function offered(
    request: ILaunchRequest,
    repository = jest.fn().mockResolvedValue(found)
  ) {
    const { api, draft } = await loaded({ repository });
    await draft.load(request);
    return { api, draft };
  }

  it('is offered, and sent only when it was taken', async () => {
    const { api, draft } = await offered({ folder: 'work/x' });
    expect(api.repository.mock.calls[0][0]).toBe('work/x');
    expect(draft.repository.found).toBe(found);
    expect(draft.spec()).toEqual({});
    draft.takeRepository(true);
    expect(draft.spec()).toEqual({ clone_repo: clone });
    draft.takeRepository(false);
    expect(draft.spec()).toEqual({});
  });

  it('is taken at once where it was asked for', async () => {
    const { draft } = await offered({ folder: '', withRepository: true });
    expect(draft.repositoryTaken).toBe(true);
    expect(draft.spec()).toEqual({ clone_repo: clone });
  });

  it('can be looked for again where it could not be seen, and is taken then as it was asked for', async () => {
    const away = new SessionError({ code: 'deadline', message: 'away' }, 0);
    const repository = jest.fn().mockRejectedValueOnce(away).mockResolvedValue(found);
    const { draft } = await offered({ folder: 'x', withRepository: true }, repository);
    expect(draft.spec()).toEqual({});
    await draft.lookAgain();
    expect(draft.spec()).toEqual({ clone_repo: clone });
  });

  it('cannot be launched without while it is looked for', async () => {
    let answer: (found: IRepository) => void = () => undefined;
    const repository = jest.fn(
      () => new Promise<IRepository>(resolve => (answer = resolve))
    );
    const { draft } = await loaded({ repository });
    const loading = draft.load({ folder: '', withRepository: true });
    await settle();
    expect(draft.launchable).toBe(false);
    await expect(draft.launch()).resolves.toBeNull();
    answer(found);
    await loading;
    expect(draft.launchable).toBe(true);
  });

  it('is no longer taken when something of it is changed by hand', async () => {
    const { draft } = await offered({ folder: '', withRepository: true });
    draft.set({ clone_repo: { ...clone, branch: 'other' } });
    expect(draft.repositoryTaken).toBe(false);
    expect(draft.spec().clone_repo).toEqual({ ...clone, branch: 'other' });
  });

  it('stays taken through a preset, but for one that brings its own', async () => {
    const own = { url: 'https://git/y.git' };
    const { api, draft } = await loaded({
      repository: jest.fn().mockResolvedValue(found),
      presets: jest.fn().mockResolvedValue({
        presets: { plain: { queue: 'gpu' }, other: { clone_repo: own } },
        last: null
      })
    });
    await draft.load({ folder: '', withRepository: true });
    draft.choose('plain');
    expect(draft.spec()).toEqual({ queue: 'gpu', clone_repo: clone });
    draft.choose('other');
    expect(draft.repositoryTaken).toBe(false);
    expect(draft.spec()).toEqual({ clone_repo: own });
    expect(api.repository).toHaveBeenCalledTimes(1);
  });

  it('is sent as it is when the dialog is opened again, from its own folder', async () => {
    const newer = { ...found, clone_repo: { ...clone, diff: '+2' } };
    const repository = jest.fn().mockResolvedValueOnce(found).mockResolvedValue(newer);
    const { draft } = await offered({ folder: 'x', withRepository: true }, repository);
    await draft.load({ folder: 'elsewhere' });
    expect(repository.mock.calls[1][0]).toBe('x');
    expect(draft.spec()).toEqual({ clone_repo: newer.clone_repo });
  });

  it('is not sent where it cannot be looked at any more', async () => {
    const repository = jest.fn().mockResolvedValueOnce(found).mockRejectedValue(none);
    const { draft } = await offered({ folder: 'x', withRepository: true }, repository);
    await draft.lookAgain();
    expect(draft.repositoryTaken).toBe(false);
    expect(draft.spec()).toEqual({});
    expect(draft.repository.isNone).toBe(true);
  });

  it('of another folder is not sent in its place, whatever is typed meanwhile', async () => {
    let refuse: (reason: SessionError) => void = () => undefined;
    const repository = jest
      .fn()
      .mockResolvedValueOnce(found)
      .mockReturnValue(new Promise((_, reject) => (refuse = reject)));
    const { draft } = await offered({ folder: 'x', withRepository: true }, repository);
    const loading = draft.load({ folder: 'y', withRepository: true });
    await settle();
    draft.set({ queue: 'gpu' });
    refuse(none);
    await loading;
    expect(draft.repositoryTaken).toBe(false);
    expect(draft.spec()).toEqual({ queue: 'gpu' });
  });

  it('is not kept in a preset', async () => {
    const { api, draft } = await loaded({
      repository: jest.fn().mockResolvedValue(found),
      savePreset: jest.fn().mockResolvedValue({ presets: {}, last: null })
    });
    await draft.load({ folder: '', withRepository: true });
    draft.set({ queue: 'gpu' });
    await draft.savePreset('mine');
    expect(api.savePreset).toHaveBeenCalledWith('mine', { queue: 'gpu' });
  });

  it('gives way to the Task that is debugged', async () => {
    const { draft } = await offered({ folder: '', withRepository: true });
    await draft.load({ spec: { debugging_session: id(3) } });
    expect(draft.spec()).toEqual({ debugging_session: id(3) });
  });

  it('is that of the newest question', async () => {
    const answers: Array<(found: IRepository) => void> = [];
    const repository = jest.fn(
      () => new Promise<IRepository>(resolve => answers.push(resolve))
    );
    const offer = new RepositoryOffer(fakeAPI({ repository }));
    const looks = [offer.look('a'), offer.look('b')];
    answers[1](found);
    answers[0]({ ...found, name: 'late' });
    await Promise.all(looks);
    expect(offer.folder).toBe('b');
    expect(offer.found).toBe(found);
  });
});

describe('validate', () => {
  it.each([
    [{ name: 'ab' }, 'name'],
    [{ name: 'abcdefghijk' }, 'name'],
    [{ debugging_session: 'xyz' }, 'debugging_session'],
    [{ idle_timeout_min: -1 }, 'idle_timeout_min']
  ])('%j', (values, field) => {
    expect(Object.keys(validate(SCHEMA, values, trans))).toEqual([field]);
  });

  it('accepts what is right or left out', () => {
    expect(validate(SCHEMA, {}, trans)).toEqual({});
    const values = { name: '', debugging_session: id(1) };
    expect(validate(SCHEMA, values, trans)).toEqual({});
  });

  it('says what is wrong in the language of the user', () => {
    const german = nullTranslator.load('');
    jest.spyOn(german, '_n').mockImplementation((_, plural, n) => `${n}: ${plural}`);
    jest.spyOn(german, '__').mockImplementation(text => `de: ${text}`);
    const values = { name: 'ab', debugging_session: 'xyz', idle_timeout_min: -1 };
    expect(validate(SCHEMA, values, german)).toEqual({
      name: '3: At least %1 characters',
      debugging_session: 'de: Not an id: 32 characters, 0 to 9 and a to f',
      idle_timeout_min: 'de: At least %1'
    });
  });
});

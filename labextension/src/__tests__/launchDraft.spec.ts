import { DEFAULTS, LAST_USED, LaunchDraft, validate } from '../launchDraft';
import { SessionError } from '../request';
import { SCHEMA, fakeAPI, id, session } from './parts';

async function loaded(calls: Parameters<typeof fakeAPI>[0] = {}) {
  const api = fakeAPI(calls);
  const draft = new LaunchDraft(api);
  await draft.load();
  return { api, draft };
}

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

  it('can be cancelled while launching', async () => {
    const { draft } = await loaded({
      launch: jest
        .fn()
        .mockImplementation(
          (_, signal: AbortSignal) =>
            new Promise((_resolve, reject) =>
              signal.addEventListener('abort', () =>
                reject(new SessionError({ code: 'cancelled', message: 'Cancelled' }, 0))
              )
            )
        )
    });
    const launch = draft.launch();
    expect(draft.busy).toBe('launching');
    draft.cancel();
    await expect(launch).resolves.toBeNull();
    expect(draft.failure).toBeNull();
    expect(draft.busy).toBeNull();
  });

  it('keeps what was typed when the dialog is opened again', async () => {
    const { draft } = await loaded();
    draft.set({ queue: 'gpu' });
    await draft.load({ debugging_session: id(3) });
    expect(draft.spec()).toEqual({ queue: 'gpu', debugging_session: id(3) });
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
    const { draft } = await loaded({ schema });
    expect(draft.failure?.message).toBe('away');
    await draft.load();
    expect(draft.schema).toBe(SCHEMA);
    expect(draft.failure).toBeNull();
  });
});

describe('validate', () => {
  it.each([
    [{ name: 'ab' }, 'name'],
    [{ name: 'abcdefghijk' }, 'name'],
    [{ debugging_session: 'xyz' }, 'debugging_session'],
    [{ idle_timeout_min: -1 }, 'idle_timeout_min']
  ])('%j', (values, field) => {
    expect(Object.keys(validate(SCHEMA, values))).toEqual([field]);
  });

  it('accepts what is right or left out', () => {
    expect(validate(SCHEMA, {})).toEqual({});
    expect(validate(SCHEMA, { name: '', debugging_session: id(1) })).toEqual({});
  });
});

import { can, findTaskId } from '../actions';
import { parseCredentials } from '../credentials';
import { merge } from '../log';
import { fraction } from '../progress';
import { textToVariables, variablesToText } from '../specForm';
import { ago, matches, phaseKind, phaseName, queueText } from '../text';
import type { Phase } from '../tokens';
import { id, session, trans } from './parts';

describe('what can be done', () => {
  const table: Array<[Phase, string]> = [
    ['created', 'shutdown'],
    ['queued', 'shutdown'],
    ['starting', 'log shutdown'],
    ['services_up', 'attach log shutdown'],
    ['connecting', 'log shutdown'],
    [
      'ready',
      'jupyter vscode terminal files port ssh forwards kernels detach reconnect log shutdown'
    ],
    ['stopping', 'log'],
    ['ended', 'log again delete'],
    ['failed', 'log again delete dismiss']
  ];
  const all = [
    'jupyter',
    'vscode',
    'terminal',
    'files',
    'port',
    'ssh',
    'forwards',
    'kernels',
    'attach',
    'detach',
    'reconnect',
    'log',
    'store',
    'shutdown',
    'again',
    'delete',
    'dismiss'
  ] as const;
  it.each(table)('%s: %s', (phase, actions) => {
    const found = all.filter(action => can(session(1, phase), action));
    expect(found.join(' ')).toBe(actions);
  });

  it('offers all of it while a session that was ready is connected anew', () => {
    const endpoints = { jupyter: 'p/' };
    const first = session(1, 'connecting', { attached: true, endpoints });
    const again = { ...first, kernelspecs: ['clearml-00000001-python3'] };
    expect([can(first, 'terminal'), can(again, 'terminal')]).toEqual([false, true]);
  });

  it('continues an ended session that has stored its workspace', () => {
    const spec = { store_workspace: '~/work' };
    expect(can(session(1, 'ended', { spec }), 'continue')).toBe(true);
    expect(can(session(1, 'ended'), 'continue')).toBe(false);
    expect(can(session(1, 'ready', { spec }), 'continue')).toBe(false);
  });

  it('opens the JupyterLab of a running session that is not attached yet', () => {
    const running = session(1, 'services_up', { endpoints: { jupyter: 'p/' } });
    expect(can(running, 'jupyter')).toBe(true);
    expect(can(running, 'terminal')).toBe(false);
  });

  it('offers to reconnect a failed connection, but not to delete the session', () => {
    const broken = session(1, 'failed', { status: 'in_progress', attached: true });
    expect(can(broken, 'reconnect')).toBe(true);
    expect(can(broken, 'shutdown')).toBe(true);
    expect(can(broken, 'delete')).toBe(false);
  });
});

describe('findTaskId', () => {
  const one = '0123456789abcdef0123456789abcdef';
  it.each([
    [one, one],
    [`  ${one.toUpperCase()}\n`, one],
    [`https://app.clear.ml/projects/*/experiments/${one}/output/log`, one],
    [`https://app.clear.ml/projects/${'f'.repeat(32)}/tasks/${one}/info-output`, one],
    [one.slice(1), null],
    [`${one}0`, null],
    [`https://app.clear.ml/projects/${one}`, null],
    ['', null]
  ])('%s', (text, found) => {
    expect(findTaskId(text)).toBe(found);
  });
});

describe('parseCredentials', () => {
  const all = {
    api_server: 'https://api.example.org',
    web_server: 'https://app.example.org:8080',
    files_server: 'https://files.example.org',
    access_key: 'ABC123',
    secret_key: 'sEcR-et_='
  };
  it('reads the block that the web page shows', () => {
    expect(
      parseCredentials(`
        api {
          # Ada's workspace
          web_server: https://app.example.org:8080
          api_server: https://api.example.org
          files_server: https://files.example.org
          # laptop
          credentials {
            "access_key" = "ABC123"
            "secret_key"  =  "sEcR-et_="
          }
        }`)
    ).toEqual(all);
  });

  it('reads JSON', () => {
    expect(
      parseCredentials(
        JSON.stringify({
          api: {
            api_server: all.api_server,
            web_server: all.web_server,
            files_server: all.files_server,
            credentials: { access_key: all.access_key, secret_key: all.secret_key }
          }
        })
      )
    ).toEqual(all);
  });

  it.each(['export ', '%env ', ''])('reads variables after "%s"', prefix => {
    expect(
      parseCredentials(
        [
          `${prefix}CLEARML_WEB_HOST=https://app.example.org:8080`,
          `${prefix}CLEARML_API_HOST=https://api.example.org`,
          `${prefix}CLEARML_FILES_HOST="https://files.example.org"`,
          `${prefix}CLEARML_API_ACCESS_KEY=ABC123`,
          `${prefix}CLEARML_API_SECRET_KEY='sEcR-et_='`
        ].join('\n')
      )
    ).toEqual(all);
  });

  it('leaves out what is not there', () => {
    expect(
      parseCredentials('api_server: https://api.example.org\nhello: world')
    ).toEqual({
      api_server: 'https://api.example.org'
    });
    expect(parseCredentials('')).toEqual({});
  });
});

describe('words', () => {
  const now = Date.parse('2026-11-22T12:00:00Z');
  it.each([
    ['2026-11-22T11:59:50Z', 'just now'],
    ['2026-11-22T11:59:00Z', '1 minute ago'],
    ['2026-11-22T11:15:00Z', '45 minutes ago'],
    ['2026-11-22T09:00:00Z', '3 hours ago'],
    ['2026-11-18T12:00:00Z', '4 days ago'],
    ['2026-11-22T13:00:00Z', 'just now'],
    ['2026-11-22T09:00:00.123456', '3 hours ago'],
    ['2026-11-22T10:00:00+01:00', '3 hours ago'],
    ['whenever', 'whenever']
  ])('%s is %s', (time, text) => {
    expect(ago(time, trans, now)).toBe(text);
  });

  it('says who serves a queue', () => {
    const busy = { id: 'w', busy: true, idle_s: null };
    const idle = { id: 'v', busy: false, idle_s: 3 };
    const queue = { id: 'q', name: 'gpu', tags: [], length: 0, workers: [busy, idle] };
    expect(queueText(queue, trans)).toBe('gpu — 1 agent idle');
    expect(queueText({ ...queue, length: 3, workers: [busy] }, trans)).toBe(
      'gpu — 1 agent, busy, 3 waiting'
    );
    expect(queueText({ ...queue, workers: [] }, trans)).toBe('gpu — no agent');
  });

  it('has a word and a look for every phase', () => {
    const phases: Phase[] = [
      'created',
      'queued',
      'starting',
      'services_up',
      'connecting',
      'ready',
      'reconnecting',
      'stopping',
      'ended',
      'failed'
    ];
    const words = phases.map(phase => phaseName(phase, trans));
    expect(new Set(words).size).toBe(phases.length);
    expect(phases.filter(phase => phaseKind(phase) === 'good')).toEqual(['ready']);
    expect(phases.filter(phase => phaseKind(phase) === 'bad')).toEqual(['failed']);
  });

  it('finds a session by all of the words', () => {
    const one = session(1, 'ready', { name: 'Fine tuning', tags: ['vision'] });
    expect(matches(one, '')).toBe(true);
    expect(matches(one, 'FINE vision')).toBe(true);
    expect(matches(one, id(1).slice(0, 8))).toBe(true);
    expect(matches(one, 'fine audio')).toBe(false);
  });
});

describe('environment variables', () => {
  it('go into text and back', () => {
    const variables = { A: '1', B: 'x=y z', C: '' };
    expect(textToVariables(variablesToText(variables))).toEqual(variables);
  });

  it('take a line that is still being typed', () => {
    expect(textToVariables('\n  A = 1\nNAME')).toEqual({ A: ' 1', NAME: '' });
  });
});

describe('progress', () => {
  const at = (step: number, fraction?: number) =>
    session(1, 'starting', {
      progress: { step, steps: 5, text: '', last_line: '', fraction }
    });
  it('goes from nothing to all', () => {
    expect(fraction(session(1, 'queued'))).toBe(0);
    expect(fraction(at(1))).toBe(0);
    expect(fraction(at(3))).toBe(0.5);
    expect(fraction(at(3, 0.5))).toBe(0.625);
    expect(fraction(at(5, 1))).toBe(1);
  });
});

describe('log lines', () => {
  const line = (time: number, text = String(time)) => ({ time: `t${time}`, text });
  it('are put together without repeating', () => {
    expect(merge([], [line(1)])).toEqual([line(1)]);
    expect(merge([line(1), line(2)], [line(2), line(3)])).toEqual(
      [1, 2, 3].map(n => line(n))
    );
    expect(merge([line(1)], [])).toEqual([line(1)]);
    expect(merge([line(1)], [line(5)])).toEqual([line(1), line(5)]);
  });

  it('of one time come all', () => {
    const burst = [line(2, 'a'), line(2, 'b'), line(2, 'c')];
    expect(merge([line(1), line(2, 'a')], burst)).toEqual([line(1), ...burst]);
  });
});

/** How busy the machine of a session is: asked for as long as it is in sight. */
import { formatFileSize } from '@jupyterlab/filebrowser';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Poll } from '@lumino/polling';
import * as React from 'react';

import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IGpu, IMetrics } from './tokens';
import { lasting } from './text';

/** Milliseconds between two looks. */
const INTERVAL = 5_000;

interface ILoadProps {
  api: SessionAPI;
  sessionId: string;
  trans: TranslationBundle;
}

/** Rows of a list of facts: processor, memory, disk, graphics processors, and for how long nothing has worked. */
export function Load({ api, sessionId, trans }: ILoadProps): JSX.Element {
  const row = React.useRef<HTMLElement>(null);
  const [load, setLoad] = React.useState<IMetrics | null>(null);
  const [error, setError] = React.useState('');
  React.useEffect(() => {
    const aborter = new AbortController();
    const look = async () => {
      try {
        setLoad(await api.metrics(sessionId, aborter.signal));
        setError('');
      } catch (reason) {
        if (!aborter.signal.aborted) {
          setError(SessionError.from(reason).message);
        }
        throw reason; // so that the poll backs off
      }
    };
    const poll = new Poll({
      name: `jupyterlab-clearml-session:load-${sessionId}`,
      auto: true,
      factory: look,
      frequency: { interval: INTERVAL, backoff: 2, max: 60_000 },
      // The list, not the row in it: that is hidden as soon as the load is there.
      standby: () =>
        document.hidden || row.current?.parentElement?.offsetParent === null
    });
    return () => {
      aborter.abort();
      poll.dispose();
    };
  }, [api, sessionId]);
  const words = load ? rows(load, trans) : [];
  return (
    <>
      {words.map(({ name, text, fraction }) => (
        <React.Fragment key={name}>
          <dt>{name}</dt>
          <dd className="jp-ClearML-load">
            {fraction !== undefined && (
              <meter
                min={0}
                max={1}
                high={0.9}
                value={fraction}
                aria-label={name}
                aria-valuetext={text}
              />
            )}
            <span>{text}</span>
          </dd>
        </React.Fragment>
      ))}
      <dt ref={row} hidden={load !== null && !error}>
        {trans.__('Load')}
      </dt>
      <dd hidden={load !== null && !error}>
        {error || trans.__('Asking the machine…')}
      </dd>
    </>
  );
}

/** One line: a name, what is to be read, and how full it is, 0 to 1. */
interface IRow {
  name: string;
  text: string;
  fraction?: number;
}

/** What is told of a machine; what it does not know itself is left out. */
export function rows(load: IMetrics, trans: TranslationBundle): IRow[] {
  const { cpu_percent: cpu, cpu_count: cores, memory, disk, gpus, idle_s: idle } = load;
  const percent = Math.round(cpu);
  return [
    {
      name: trans.__('Processor'),
      text: cores
        ? trans._n('%2% of %1 core', '%2% of %1 cores', cores, percent)
        : trans.__('%1%', percent),
      fraction: cpu / 100
    },
    ...(memory.total && memory.used !== undefined
      ? [filled(trans.__('Memory'), memory.used, memory.total, trans)]
      : []),
    filled(trans.__('Disk'), disk.used, disk.total, trans),
    ...gpus.map(gpu => graphics(gpu, trans)),
    {
      name: trans.__('Last active'),
      text: idle < 60 ? trans.__('just now') : trans.__('%1 ago', lasting(idle, trans))
    }
  ];
}

function filled(
  name: string,
  used: number,
  total: number,
  trans: TranslationBundle
): IRow {
  const [a, b] = [used, total].map(bytes => formatFileSize(bytes, 1, 1024));
  return {
    name,
    text: trans.__('%1 of %2', a, b),
    fraction: total > 0 ? used / total : 0
  };
}

function graphics(gpu: IGpu, trans: TranslationBundle): IRow {
  const { utilization_percent: busy, temperature_c: heat } = gpu;
  const megabyte = 1024 * 1024;
  const parts = [
    gpu.name,
    typeof busy === 'number' ? trans.__('%1%', busy) : '',
    typeof gpu.memory_used_mb === 'number' && typeof gpu.memory_total_mb === 'number'
      ? filled('', gpu.memory_used_mb * megabyte, gpu.memory_total_mb * megabyte, trans)
          .text
      : '',
    typeof heat === 'number' ? trans.__('%1 °C', heat) : ''
  ];
  return {
    name: trans.__('GPU %1', gpu.index),
    text: parts.filter(Boolean).join(' · '),
    fraction: typeof busy === 'number' ? busy / 100 : undefined
  };
}

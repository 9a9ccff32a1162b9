/** Finds the Task that is to be debugged. */
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { findTaskId } from './actions';
import { choiceDialog } from './dialog';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { ITask } from './tokens';
import { ago } from './text';

/** Milliseconds that a pause in typing lasts. */
const PAUSE = 300;

/** Find a Task by a part of its name, by its id or by its address in ClearML; returns its id. */
export function taskDialog(
  api: SessionAPI,
  trans: TranslationBundle
): Promise<string | null> {
  return choiceDialog<string>({
    title: trans.__('Debug a Task'),
    accept: trans.__('Continue'),
    choices: onChoose => <Tasks api={api} trans={trans} onChoose={onChoose} />,
    trans
  });
}

function Tasks(props: {
  api: SessionAPI;
  trans: TranslationBundle;
  onChoose: (id: string | null) => void;
}): JSX.Element {
  const { api, trans, onChoose } = props;
  const [text, setText] = React.useState('');
  const [tasks, setTasks] = React.useState<ITask[] | null>(null);
  const [chosen, setChosen] = React.useState<string | null>(null);
  const [error, setError] = React.useState('');
  const newest = text.trim() === '';
  // An id can be meant that the search does not find: the server says at launch what is wrong with it.
  const meant = findTaskId(text) ?? chosen;
  React.useEffect(() => {
    const aborter = new AbortController();
    const search = async () => {
      try {
        const found = await api.tasks(findTaskId(text) ?? text.trim(), aborter.signal);
        setTasks(found);
        setError('');
        setChosen(old =>
          found.length === 1
            ? found[0].id
            : (found.find(task => task.id === old)?.id ?? null)
        );
      } catch (reason) {
        if (!aborter.signal.aborted) {
          setError(SessionError.from(reason).message);
        }
      }
    };
    const timer = setTimeout(() => void search(), text ? PAUSE : 0);
    return () => {
      clearTimeout(timer);
      aborter.abort();
    };
  }, [api, text]);
  React.useEffect(() => onChoose(meant), [meant, onChoose]);
  return (
    <>
      <label className="jp-ClearML-field">
        <span className="jp-ClearML-label">
          {trans.__('Part of the name, the id, or the address in ClearML')}
        </span>
        <input
          type="search"
          className="jp-ClearML-input"
          spellCheck={false}
          value={text}
          onChange={event => {
            setText(event.target.value);
            setChosen(null); // it was chosen from what another text has found
          }}
        />
      </label>
      <div
        role="radiogroup"
        aria-label={newest ? trans.__('Newest Tasks') : trans.__('Tasks')}
        className="jp-ClearML-choices"
      >
        {(tasks ?? []).map(task => (
          <label key={task.id} className="jp-ClearML-choice">
            <input
              type="radio"
              name="jp-ClearML-task"
              checked={meant === task.id}
              onChange={() => setChosen(task.id)}
            />
            <span className="jp-ClearML-choice-name">{task.name}</span>
            <span className="jp-ClearML-dim">
              {[
                task.project,
                task.status,
                task.created ? ago(task.created, trans) : '',
                task.repository
              ]
                .filter(Boolean)
                .join(' · ')}
            </span>
          </label>
        ))}
      </div>
      <p role="status" className={error ? 'jp-ClearML-fieldError' : 'jp-ClearML-dim'}>
        {error ||
          (tasks === null
            ? trans.__('Searching…')
            : tasks.length === 0
              ? trans.__('No Task with a repository found.')
              : newest
                ? trans.__('These are the newest Tasks that have a repository.')
                : '')}
      </p>
    </>
  );
}

/** Offers to clone the repository of the folder in use, and shows what would be sent before it is. */
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import type { LaunchDraft } from './launchDraft';
import type { IRepository } from './tokens';

/** Lines of a diff that are shown; all of them are sent. */
const SHOWN_LINES = 2_000;

/** Digits of a commit that are enough for people. */
const SHORT_COMMIT = 10;

interface IBoxProps {
  draft: LaunchDraft;
  trans: TranslationBundle;
}

/** The offer; nothing where there is nothing to offer. */
export function RepositoryBox({ draft, trans }: IBoxProps): JSX.Element | null {
  const { repository, repositoryAsked: asked, repositoryTaken: taken } = draft;
  const { folder, found, error, looking } = repository;
  const debugs = Boolean(draft.values.debugging_session); // it has the repository of its Task
  const silent = !found && !asked && (looking || repository.isNone);
  if (folder === null || silent || (debugs && !taken)) {
    return null;
  }
  return (
    <section
      className="jp-ClearML-repository"
      aria-label={trans.__('Repository of the folder')}
      aria-busy={looking}
    >
      <label className="jp-ClearML-check">
        <input
          type="checkbox"
          checked={taken}
          disabled={!found || draft.busy === 'launching'}
          onChange={event => draft.takeRepository(event.target.checked)}
        />
        {trans.__('Clone the repository of this folder')}
      </label>
      {found && !taken && <Summary found={found} trans={trans} />}
      {found && taken && <Preview draft={draft} found={found} trans={trans} />}
      <p role="status" className="jp-ClearML-dim">
        {looking && !found && trans.__('Looking at the repository of this folder…')}
      </p>
      {error && (
        <>
          <p role="alert" className="jp-ClearML-fieldError">
            {error.text}
          </p>
          <LookAgain draft={draft} trans={trans} />
        </>
      )}
    </section>
  );
}

function changes(found: IRepository, trans: TranslationBundle): string {
  return found.files.length === 0
    ? trans.__('no changes')
    : trans._n('%1 changed file', '%1 changed files', found.files.length);
}

/** One line: what it would be. */
function Summary(props: { found: IRepository; trans: TranslationBundle }): JSX.Element {
  const { found, trans } = props;
  const parts = [found.name, found.clone_repo.branch, changes(found, trans)];
  return (
    <p className="jp-ClearML-dim jp-ClearML-indented">
      {parts.filter(Boolean).join(' · ')}
    </p>
  );
}

/** All that is sent, and what is not. */
function Preview(props: IBoxProps & { found: IRepository }): JSX.Element {
  const { draft, found, trans } = props;
  const { url, branch, commit, diff } = found.clone_repo;
  return (
    <div className="jp-ClearML-preview jp-ClearML-indented">
      <dl className="jp-ClearML-facts">
        <dt>{trans.__('Repository')}</dt>
        <dd>{url}</dd>
        {branch && (
          <>
            <dt>{trans.__('Branch')}</dt>
            <dd>{branch}</dd>
          </>
        )}
        <dt>{trans.__('Commit')}</dt>
        <dd>
          <code title={commit}>{commit.slice(0, SHORT_COMMIT)}</code>
          {found.local_commits > 0 && (
            <span className="jp-ClearML-dim">
              {' '}
              {trans._n(
                'and %1 commit that is not pushed, sent as changes',
                'and %1 commits that are not pushed, sent as changes',
                found.local_commits
              )}
            </span>
          )}
        </dd>
        <dt>{trans.__('Changes')}</dt>
        <dd>{found.files.length === 0 ? trans.__('none') : changes(found, trans)}</dd>
      </dl>
      {found.files.length > 0 && (
        <details>
          <summary>{trans.__('Show the changes')}</summary>
          <ul className="jp-ClearML-fileList">
            {found.files.map(file => (
              <li key={file}>{file}</li>
            ))}
          </ul>
          <Diff text={diff} trans={trans} />
        </details>
      )}
      {found.left_out.length > 0 && (
        <div className="jp-ClearML-note" role="note">
          <p>
            {trans._n(
              '%1 changed file is not sent:',
              '%1 changed files are not sent:',
              found.left_out.length
            )}
          </p>
          <ul className="jp-ClearML-fileList">
            {found.left_out.map(({ path, reason }) => (
              <li key={path}>
                <code>{path}</code>: {reason}
              </li>
            ))}
          </ul>
        </div>
      )}
      <LookAgain draft={draft} trans={trans} />
    </div>
  );
}

function LookAgain({ draft, trans }: IBoxProps): JSX.Element {
  return (
    <button
      type="button"
      className="jp-ClearML-button"
      disabled={draft.repository.looking || draft.busy === 'launching'}
      title={trans.__('Files may have changed since the dialog was opened')}
      onClick={() => void draft.lookAgain()}
    >
      {trans.__('Look Again')}
    </button>
  );
}

function Diff({
  text,
  trans
}: {
  text: string;
  trans: TranslationBundle;
}): JSX.Element {
  const lines = text.split('\n');
  return (
    <>
      <pre
        // It is scrolled, by the keyboard too.
        // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex
        tabIndex={0}
        aria-label={trans.__('Changes')}
      >
        {lines.slice(0, SHOWN_LINES).join('\n')}
      </pre>
      {lines.length > SHOWN_LINES && (
        <p className="jp-ClearML-dim">
          {trans.__('The first %1 of %2 lines are shown.', SHOWN_LINES, lines.length)}
        </p>
      )}
    </>
  );
}

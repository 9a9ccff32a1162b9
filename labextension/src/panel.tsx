/** The side panel: renders the model, runs commands. */
import { ReactWidget, UseSignal } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import {
  addIcon,
  caretDownIcon,
  caretRightIcon,
  ellipsesIcon,
  MenuSvg,
  refreshIcon
} from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { Card, ErrorBox, openMenu } from './card';
import { CommandIDs } from './commandIds';
import { Doors } from './doors';
import { useFocusNearby } from './focus';
import { sessionIcon } from './icons';
import { NOT_LOGGED_IN } from './request';
import { matches } from './text';
import type { ISession, ISessionModel } from './tokens';

/** Id of the panel in the shell. */
export const PANEL_ID = 'jp-clearml-session-panel';

interface IPanelProps {
  model: ISessionModel;
  commands: CommandRegistry;
  trans: TranslationBundle;
}

/** The panel as a widget for the left side. */
export class PanelWidget extends ReactWidget {
  constructor(private readonly _props: IPanelProps) {
    super();
    const { trans } = _props;
    this.id = PANEL_ID;
    this.addClass('jp-ClearML-panel');
    this.title.icon = sessionIcon;
    this.title.caption = trans.__('ClearML sessions');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('ClearML sessions'));
  }

  protected override render(): JSX.Element {
    return (
      <UseSignal signal={this._props.model.changed}>
        {() => <Panel {...this._props} />}
      </UseSignal>
    );
  }
}

/** All of the panel. */
export function Panel(props: IPanelProps): JSX.Element {
  const { model, trans } = props;
  const { status, error } = model;
  return (
    <>
      <Header {...props} />
      {error && (
        <ErrorBox error={error.body} trans={trans}>
          <button
            type="button"
            className="jp-ClearML-button"
            data-action="retry"
            onClick={() =>
              error.code === NOT_LOGGED_IN
                ? window.location.reload()
                : void model.refresh()
            }
          >
            {error.code === NOT_LOGGED_IN
              ? trans.__('Reload the Page')
              : trans.__('Try Again')}
          </button>
        </ErrorBox>
      )}
      {status?.mode === 'unconfigured' ? (
        <Doors model={model} trans={trans} />
      ) : (
        <Sessions {...props} />
      )}
    </>
  );
}

function Header({ model, commands, trans }: IPanelProps): JSX.Element {
  const { status } = model;
  const [refreshing, setRefreshing] = React.useState(false);
  const configured = status !== null && status.mode !== 'unconfigured';
  const refresh = async () => {
    setRefreshing(true);
    await model.refresh();
    setRefreshing(false);
  };
  const more = (event: React.MouseEvent<HTMLButtonElement>) => {
    const menu = new MenuSvg({ commands });
    menu.addItem({ command: CommandIDs.attachById });
    menu.addItem({ command: CommandIDs.debugTask });
    menu.addItem({ type: 'separator' });
    menu.addItem({ command: CommandIDs.toggleAllUsers });
    menu.addItem({ type: 'separator' });
    menu.addItem({ command: CommandIDs.importPresets });
    menu.addItem({ command: CommandIDs.cleanUp });
    menu.addItem({ type: 'separator' });
    menu.addItem({ command: CommandIDs.connectServer });
    openMenu(menu, event.currentTarget);
  };
  return (
    <div className="jp-ClearML-header">
      <div className="jp-ClearML-title">
        <h2>{trans.__('ClearML')}</h2>
        {configured && <Where model={model} trans={trans} />}
      </div>
      <div
        className="jp-ClearML-toolbar"
        role="toolbar"
        aria-label={trans.__('ClearML')}
      >
        <button
          type="button"
          className="jp-ClearML-button jp-mod-primary"
          data-command={CommandIDs.newSession}
          disabled={!configured}
          onClick={() => void commands.execute(CommandIDs.newSession)}
        >
          <addIcon.react tag="span" className="jp-ClearML-icon" />
          {trans.__('New Session')}
        </button>
        <span className="jp-ClearML-spacer" />
        <button
          type="button"
          className="jp-ClearML-iconButton"
          data-command={CommandIDs.refresh}
          aria-label={trans.__('Refresh')}
          title={trans.__('Refresh')}
          aria-busy={refreshing}
          onClick={() => void refresh()}
        >
          <refreshIcon.react tag="span" className="jp-ClearML-icon" />
        </button>
        <button
          type="button"
          className="jp-ClearML-iconButton"
          aria-haspopup="menu"
          aria-label={trans.__('More')}
          title={trans.__('More')}
          disabled={!configured}
          onClick={more}
        >
          <ellipsesIcon.react tag="span" className="jp-ClearML-icon" />
        </button>
      </div>
    </div>
  );
}

/** Which server, as whom. */
function Where(props: { model: ISessionModel; trans: TranslationBundle }): JSX.Element {
  const { model, trans } = props;
  const { status } = model;
  const local = status?.mode === 'local';
  const reachable = Boolean(status?.reachable) && !model.error;
  const place = local ? trans.__('this machine') : host(status?.api_server ?? '');
  const title = [
    local
      ? trans.__('Embedded ClearML on this machine; it ends with JupyterLab')
      : trans.__('ClearML server %1', status?.api_server ?? ''),
    reachable ? '' : trans.__('cannot be reached at the moment')
  ]
    .filter(Boolean)
    .join(', ');
  return (
    <span className="jp-ClearML-where" title={title} data-mode={status?.mode}>
      <span
        className="jp-ClearML-dot"
        data-kind={reachable ? 'good' : 'bad'}
        role="img"
        aria-label={reachable ? trans.__('connected') : trans.__('not connected')}
      />
      {[local ? '' : status?.user?.name, place].filter(Boolean).join(' · ')}
    </span>
  );
}

function host(url: string): string {
  try {
    return new URL(url).host;
  } catch {
    return url;
  }
}

function Sessions(props: IPanelProps): JSX.Element {
  const { model, commands, trans } = props;
  const [filter, setFilter] = React.useState('');
  const list = React.useRef<HTMLDivElement>(null);
  useFocusNearby(list, '.jp-ClearML-card');
  if (model.loading) {
    return model.error ? (
      <></>
    ) : (
      <p className="jp-ClearML-empty" role="status">
        {trans.__('Asking ClearML for your sessions…')}
      </p>
    );
  }
  const active = model.active.filter(session => matches(session, filter));
  const ended = (model.ended ?? []).filter(session => matches(session, filter));
  return (
    <>
      <div className="jp-ClearML-filter">
        <input
          type="search"
          className="jp-ClearML-input"
          placeholder={trans.__('Filter')}
          aria-label={trans.__('Filter sessions by name, tag, queue or id')}
          value={filter}
          onChange={event => setFilter(event.target.value)}
        />
        <label title={trans.__("Show other people's sessions too")}>
          <input
            type="checkbox"
            checked={model.allUsers}
            data-action="all-users"
            onChange={event => (model.allUsers = event.target.checked)}
          />
          {trans.__('Everybody')}
        </label>
      </div>
      <div ref={list} className="jp-ClearML-list" tabIndex={-1}>
        <Group
          {...props}
          name={trans.__('Active')}
          sessions={active}
          empty={
            filter ? (
              trans.__('No active session matches.')
            ) : (
              <FirstSteps commands={commands} trans={trans} />
            )
          }
        />
        <Group
          {...props}
          name={trans.__('Ended')}
          sessions={ended}
          open={model.showEnded}
          onToggle={open => (model.showEnded = open)}
          empty={
            model.ended === null
              ? trans.__('Asking ClearML…')
              : filter
                ? trans.__('No ended session matches.')
                : trans.__('No ended session.')
          }
        />
      </div>
    </>
  );
}

function FirstSteps(props: {
  commands: CommandRegistry;
  trans: TranslationBundle;
}): JSX.Element {
  const { commands, trans } = props;
  return (
    <>
      <p>{trans.__('No session runs at the moment.')}</p>
      <div className="jp-ClearML-actions">
        {[CommandIDs.attachById, CommandIDs.debugTask].map(id => (
          <button
            key={id}
            type="button"
            className="jp-ClearML-button"
            data-command={id}
            title={commands.caption(id)}
            onClick={() => void commands.execute(id)}
          >
            {id === CommandIDs.attachById
              ? trans.__('Attach by Id…')
              : trans.__('Debug a Task…')}
          </button>
        ))}
      </div>
    </>
  );
}

interface IGroupProps extends IPanelProps {
  name: string;
  sessions: ReadonlyArray<ISession>;
  empty: React.ReactNode;
  /** Left out: the group remembers by itself, and begins open. */
  open?: boolean;
  onToggle?: (open: boolean) => void;
}

function Group(props: IGroupProps): JSX.Element {
  const { name, sessions, commands, trans } = props;
  const [own, setOwn] = React.useState(true);
  const open = props.open ?? own;
  const known = open || sessions.length > 0;
  const Caret = open ? caretDownIcon : caretRightIcon;
  return (
    <section className="jp-ClearML-group" aria-label={name}>
      <h3>
        <button
          type="button"
          aria-expanded={open}
          onClick={() => (props.onToggle ?? setOwn)(!open)}
        >
          <Caret.react tag="span" className="jp-ClearML-icon" />
          {name}
          {known && <span className="jp-ClearML-count">{sessions.length}</span>}
        </button>
      </h3>
      {open &&
        (sessions.length > 0 ? (
          sessions.map(session => (
            <Card
              key={session.id}
              api={props.model.api}
              session={session}
              commands={commands}
              trans={trans}
            />
          ))
        ) : (
          <div className="jp-ClearML-empty">{props.empty}</div>
        ))}
    </section>
  );
}

/** What the present step changed, in words. */

import { underWay } from "./arrows.ts";
import { cycleOf, type Snapshot } from "./fold.ts";
import { alarmsOf, roomClass, type Model } from "./model.ts";
import { SIGNS } from "./sequence.tsx";
import type { Mark, Step } from "./types.ts";
import { partsOf, sectionsOf, stepWords, timeWords, type Section } from "./words.ts";

function Callouts({ marks, properties }: { marks: Mark[]; properties: Record<string, string> }) {
  return (
    <>
      {marks
        .filter((mark) => mark.kind !== "resume")
        .map((mark, i) => (
          <p key={i} class={`callout ${mark.kind}`}>
            <b>
              {SIGNS[mark.kind]?.[0]} {SIGNS[mark.kind]?.[1] ?? mark.kind}
              {mark.property && ` of ${mark.property}`}
            </b>
            :{" "}
            {partsOf(mark.text).map((part, j) => (
              <span key={j} class="part">
                {part}{" "}
              </span>
            ))}
            {mark.property && properties[mark.property] && <span class="property-text"> {mark.property}: {properties[mark.property]}.</span>}
          </p>
        ))}
    </>
  );
}

function SectionView({ section, model, room }: { section: Section; model: Model; room: number | null }) {
  const shown = section.sentences.filter((item) => room === null || item.room < 0 || item.room === room);
  if (!shown.length) return null;
  return (
    <>
      <h4>{section.title}</h4>
      <ul>
        {shown.map((item, i) => (
          <li key={i} class={`${roomClass(model.rooms, item.room)}${item.bad ? " bad" : ""}`}>
            <span class={item.head === shown[i - 1]?.head ? "from again" : "from"}>{item.head}</span>
            <span>
              {item.bad && <b class="sign">! </b>}
              {item.body}
              {item.more && <small>{item.more}</small>}
            </span>
          </li>
        ))}
      </ul>
    </>
  );
}

export interface DetailsProps {
  model: Model;
  step: Step;
  before: Snapshot;
  room: number | null;
  properties: Record<string, string>;
}

export function Details({ model, step, before, room, properties }: DetailsProps) {
  const sections = sectionsOf(step, before);
  const flying = underWay(model.flights, step.number).filter((flight) => room === null || flight.room === room);
  const alarms = alarmsOf(model).filter((alarm) => alarm.step === step.number);
  const marks = model.run.marks.filter((mark) => mark.step === step.number);
  const cycle = cycleOf(model.run);
  const repeats = cycle >= 0 && step.number >= cycle;
  return (
    <section class="panel details" aria-label="what this step changed">
      <h3>
        Step {step.number} <span class="of">of {model.last}</span>
        <span class="time">{timeWords(step.time_s)}</span>
      </h3>
      <p class="what">
        {step.fault && <b class="sign fault">! fault: </b>}
        {stepWords(step)}
      </p>
      {step.seen && <p class="note seen">Told by {step.seen.replace(/:(\d+)$/, ", line $1")}.</p>}
      {repeats && (
        <p class="note">
          ∞ One of the steps that repeat for ever: {cycle} to {model.last}, then {cycle} again.
        </p>
      )}
      {step.skipped && <p class="note">Only the other run has this step.</p>}
      {step.extra && <p class="note">Only this run has this step.</p>}
      <Callouts marks={marks} properties={properties} />
      {alarms.map((alarm, i) => (
        <p key={i} class="callout violation">
          <b>! {alarm.title}</b>: {alarm.text}
        </p>
      ))}
      {sections.map((section) => (
        <SectionView key={section.title} section={section} model={model} room={room} />
      ))}
      {sections.length === 0 && !step.skipped && <p class="note">It changed nothing that is shown here.</p>}
      <h4>Under way after it</h4>
      {flying.length === 0 ? (
        <p class="note">Nothing.</p>
      ) : (
        <ul>
          {flying.map((flight, i) => (
            <li key={i} class={roomClass(model.rooms, flight.room)}>
              <span class="from">to {flight.target}</span>
              <span title={flight.text}>
                {flight.what === "bytes" ? "bytes " : ""}
                {flight.label}
                {flight.copy && " (a copy)"}
                {flight.held >= 0 && flight.held <= step.number && " (held back)"}
              </span>
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}

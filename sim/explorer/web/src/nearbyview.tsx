/** A small map of the states around the present one. The buttons beside it do the same for the keyboard. */

import { curveBasis, line } from "d3-shape";
import { useMemo } from "preact/hooks";
import { nearbyOf, type Dot, type Link } from "./nearby.ts";
import type { Edge, Graph } from "./types.ts";

const smooth = line<{ x: number; y: number }>().x((at) => at.x).y((at) => at.y).curve(curveBasis);

export interface NearbyProps {
  graph: Graph;
  lists: Edge[][];
  node: number;
  from: Edge | null;
  /** The choice that the shown run takes next. */
  taken: number;
  hopeless: Set<number>;
  letterOf: (choice: number) => string;
  take: (choice: number) => void;
}

/** What is known of a state, as a sign in its dot and in words. */
function signOf(props: NearbyProps, dot: Dot, broken: boolean): [string, string] {
  if (broken) return ["✕", "something is broken here"];
  if (props.graph.ends.includes(dot.node)) return ["✓", "ends well"];
  if (props.graph.standstills.some((item) => item.node === dot.node)) return ["✕", "all stands still here, and should not"];
  if (dot.node >= props.graph.expanded) return ["?", "not looked into any further"];
  if (props.hopeless.has(dot.node)) return ["⚑", "from here no run ends well"];
  return ["", ""];
}

function Wire({ link, props }: { link: Link; props: NearbyProps }) {
  const { edge, points } = link;
  const middle = points[Math.floor(points.length / 2)]!;
  const next = edge.source === props.node;
  const text = props.graph.choices[edge.choice] ?? "";
  const classes = ["wire-group", next ? "next" : "", next && edge.choice === props.taken ? "taken" : ""].join(" ");
  return (
    <g class={classes}>
      <title>{text}</title>
      <path d={smooth(points) ?? ""} />
      {next && (
        <text x={middle.x} y={middle.y - 3} text-anchor="middle">
          {props.letterOf(edge.choice)}
        </text>
      )}
    </g>
  );
}

export function NearbyMap(props: NearbyProps) {
  const { graph, lists, node, from } = props;
  const drawing = useMemo(() => nearbyOf(graph, lists, node, from), [graph, node, from]);
  if (drawing.dots.length < 2) return null;
  const brokenAt = new Set(drawing.links.filter((link) => link.edge.broken.length > 0).map((link) => link.edge.target));
  const offered = new Map(drawing.links.filter((link) => link.edge.source === node).map((link) => [link.edge.target, link.edge]));
  return (
    <figure class="nearby">
      <svg width={Math.round(drawing.width * 1.3)} viewBox={`0 0 ${drawing.width} ${drawing.height}`} aria-hidden="true">
        {drawing.links.map((link, i) => (
          <Wire key={i} link={link} props={props} />
        ))}
        {drawing.dots.map((dot) => {
          const [sign, words] = signOf(props, dot, brokenAt.has(dot.node));
          const edge = offered.get(dot.node);
          const kind = dot.depth === 0 ? "now" : dot.depth < 0 ? "before" : edge ? "next" : "far";
          return (
            <g key={dot.node} class={`dot ${kind}${sign === "✕" ? " bad" : ""}`} transform={`translate(${dot.x} ${dot.y})`} onClick={() => edge && props.take(edge.choice)}>
              <title>{[`state ${dot.node}`, words, edge ? graph.choices[edge.choice] : ""].filter(Boolean).join("\n")}</title>
              <circle r={dot.depth === 0 ? 10 : 8} />
              <text y={4} text-anchor="middle">
                {sign}
              </text>
            </g>
          );
        })}
      </svg>
      <figcaption class="note">
        The states near this one (left: before it; ✓ ends well, ✕ broken{props.hopeless.size > 0 && ", ⚑ no good end any more"}).
      </figcaption>
    </figure>
  );
}

import { render } from "preact";
import "./board.css";
import { Frame } from "./Frame";
import { applyTheme } from "./settings";
import { showVisibly } from "./text";

applyTheme();
showVisibly();
const root = document.getElementById("app");
if (root !== null) render(<Frame />, root);

/** The sign of the project: four bars, one for each priority. */
export function Mark({ size = 24 }: { size?: number }) {
  return (
    <svg class="markup" width={size} height={size} viewBox="0 0 24 24" aria-hidden="true">
      <rect class="markbg" width="24" height="24" rx="6.5" />
      <rect class="m-critical" x="6" y="6.2" width="7" height="1.9" rx=".95" />
      <rect class="m-high" x="6" y="9.4" width="11.5" height="1.9" rx=".95" />
      <rect class="m-medium" x="6" y="12.6" width="9" height="1.9" rx=".95" />
      <rect class="m-low" x="6" y="15.8" width="5" height="1.9" rx=".95" />
    </svg>
  );
}

"""From noise to latents: the schedule, the sampler tables, the noise, the guidance and the loop.

Read in the order of the flow: `schedule` (which noise levels), `plan` (what a table is),
`samplers` (functions that make tables), `noise`, `guidance`, `run` (one row after the other) and
`denoise` (the loop).
"""

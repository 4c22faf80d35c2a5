-- When the latest fact was recorded is asked with every report and every second for live figures: only the newest granules are read.
ALTER TABLE sales ADD INDEX IF NOT EXISTS newest version TYPE minmax;
ALTER TABLE returns ADD INDEX IF NOT EXISTS newest version TYPE minmax;
ALTER TABLE points_moves ADD INDEX IF NOT EXISTS newest version TYPE minmax;
ALTER TABLE members ADD INDEX IF NOT EXISTS newest version TYPE minmax;
